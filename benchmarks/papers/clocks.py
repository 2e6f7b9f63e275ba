"""Paper A, two networks at two rates: going back through all T x T steps, and a guess for each message in its place."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isnan
from pathlib import Path
from statistics import mean

import torch
from rich.box import MARKDOWN
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Adam

from stepahead.launch import Dataset, Job, Track, digits, train
from stepahead.launch.recording import lines_of
from stepahead.launch.two_clocks import (
    clock_graph,
    count_windows,
    fast_accuracy,
    fast_loss,
    labels_of,
    last_loss,
    slow_accuracy,
    slow_loss,
)
from stepahead.pipeline import (
    Graph,
    Recipe,
    Recurrent,
    Reference,
    SignalRecipe,
    StepReport,
    assemble,
    cut_model,
    silent,
    synthetic,
)
from stepahead.pipeline.groups import evaluating
from stepahead.workers import newest_snapshot, read_snapshot

from .entry import Budget, Entry, Figures, Trial
from .figures import draw_readings
from .nets import images

__all__ = ["ENTRIES"]

TICKS = 4
ODD, THREES = 2, 3
"""Their places in a reading, behind its sequences and seconds."""
METHODS = ("lock-step", "decoupled", "no gradient from the slow one", "decoupled, two processes")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A pair of networks, and how long they learn."""

    width: int
    batch: int
    sequences: int
    rate: float
    guess_rate: float
    """Of what guesses: it has to keep up."""


PAPER = Size(width=256, batch=256, sequences=400_000, rate=1e-5, guess_rate=1e-5)
SHORT = Size(width=64, batch=64, sequences=2_500, rate=5e-4, guess_rate=3e-3)
READINGS, SMOOTHED = 30, 5
"""Of the errors along a run; single ones go up and down, so the mean of the last few is what is compared."""
Errors = tuple[float, float]
"""The share of counts that are wrong: of odd digits, of threes."""


def _run(source: str, method: str, seed: int, budget: Budget, title: str) -> Figures:
    size = PAPER if budget.full else SHORT
    data = digits() if source == "digits" else images(budget.data, True)
    if method.endswith("processes"):
        return _in_processes(size, data, seed)
    learn = _lock_step if method == "lock-step" else partial(_apart, silent if method.startswith("no") else None)
    every, curve, begun = size.sequences // READINGS, list[tuple[int, float, float, float]](), time.monotonic()
    measured = 0.0

    def reports() -> Iterator[StepReport]:
        nonlocal measured
        for sequence, errors in enumerate(learn(size, data, seed), start=1):
            if sequence % every == 0:
                seconds, start = time.monotonic() - begun - measured, time.monotonic()
                curve.append((sequence, round(seconds, 1), *errors()))
                measured += time.monotonic() - start
            yield StepReport(sequence - 1, size.batch, curve[-1][2] if curve else float("nan"))

    for _ in Track(reports(), total=size.sequences, title=title, every_seconds=60):
        pass
    return {"odd_error": curve[-1][2], "threes_error": curve[-1][3], "curve": curve, "sequences": size.sequences}


def _lock_step(size: Size, data: Dataset, seed: int) -> Iterator[Callable[[], Errors]]:
    """One network: each sequence once forward, once back, through all of it; then a step."""
    net = _graph(data, size, None).uncut(seed)
    optimizer = Adam(net.parameters(), lr=size.rate)
    parts = dict(net.named_children())
    for windows in _sequences(data.train, size, seed):
        x, y = torch.cat([x for x, _ in windows], dim=1), [y for _, y in windows]
        optimizer.zero_grad()
        odd, threes = _whole(parts, x)
        fast = [fast_loss(TICKS, one, label) for one, label in zip(odd, y, strict=True)]
        slow = [slow_loss(TICKS, threes[:, tick], label) for tick, label in enumerate(y)]
        torch.autograd.backward(torch.stack([*fast, *slow]).sum() / TICKS)
        optimizer.step()
        yield partial(_errors, parts, data)


def _apart(signal: SignalRecipe | None, size: Size, data: Dataset, seed: int) -> Iterator[Callable[[], Errors]]:
    """Two stages, which step on each window."""
    windows = count_windows(data.train, TICKS, size.batch, size.sequences, seed)
    example = next(count_windows(data.train, TICKS, size.batch, 1, seed))
    groups = cut_model(_graph(data, size, _guess(size)), at=["slow"], seed=seed, example=example[0])
    recipe = Recipe(
        loss=partial(last_loss, TICKS),
        signal=signal or _guess(size, labels=True),
        optimizer=partial(Adam, lr=size.rate),
        seed=seed,
    )
    reference = Reference(assemble(groups, example, recipe))
    parts = {name: layer for group in groups for name, layer in zip(group.names, group.layers, strict=True)}
    for report in reference.train(windows):
        if (report.step + 1) % TICKS == 0:
            yield partial(_errors, parts, data)


def _in_processes(size: Size, data: Dataset, seed: int) -> Figures:
    """The same in two processes, which run side by side; the error of odd digits is read while they do."""
    job = Job(
        model=_graph(data, size, _guess(size)),
        data=partial(_sequence_after_sequence, data.train, size, seed),
        test=list(count_windows(data.test, TICKS, 1000, 1, 0)),
        loss=partial(last_loss, TICKS),
        metrics={"odd": partial(fast_accuracy, TICKS)},
        optimizer=partial(Adam, lr=size.rate),
        signal=_guess(size, labels=True),
        classes=labels_of(TICKS),
    )
    every = size.sequences // READINGS
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        steps = {"steps": TICKS * size.sequences, "evaluate_every": TICKS * every}
        made = train(job, cut="slow", seed=seed, baseline="none", run_dir=str(run), **steps)
        lines = [line for line in lines_of(run) if "time" in line]
        net = _graph(data, size, None).uncut()
        net.load_state_dict(read_snapshot(newest_snapshot(run)))
    curve = [
        (step // TICKS, round(line["time"] - lines[0]["time"], 1), 100 * (1 - metrics["odd"]), float("nan"))
        for line in lines
        for step, metrics in line.get("evaluations", ())
    ]
    odd, threes = _errors(dict(net.named_children()), data)
    shares = {name: [stage[name] for stage in made["stages"]] for name in ("useful", "tax", "idle")}
    return {"odd_error": odd, "threes_error": threes, "curve": curve, "sequences": size.sequences, **shares}


def _sequence_after_sequence(
    data: tuple[Tensor, Tensor], size: Size, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    return count_windows(data, TICKS, size.batch, size.sequences, seed + epoch)


def _guess(size: Size, *, labels: bool = False) -> SignalRecipe:
    learns = partial(Adam, lr=size.guess_rate)
    return synthetic("mlp", hidden=size.width, classes=labels_of(TICKS) if labels else None, optimizer=learns)


def _graph(data: Dataset, size: Size, guess: SignalRecipe | None) -> Graph:
    return clock_graph(data.train[0][0].numel(), TICKS, size.width, guess, guess)


def _sequences(data: tuple[Tensor, Tensor], size: Size, seed: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    windows = count_windows(data, TICKS, size.batch, size.sequences, seed)
    while sequence := list(islice(windows, TICKS)):
        yield sequence


def _whole(parts: Mapping[str, nn.Module], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what both networks say of whole sequences, in one graph, after each window."""
    fast, slow = parts["fast"], parts["slow"]
    assert isinstance(fast, Recurrent)
    assert isinstance(slow, Recurrent)
    seen, _ = fast.core(parts["eye"](x), None)
    windows = seen.split(TICKS, dim=1)
    messages = torch.cat([parts["message"](window) for window in windows], dim=1)
    seen, _ = slow.core(messages, None)
    threes = [parts["threes"](seen[:, : tick + 1]) for tick in range(TICKS)]
    return [parts["odd"](window) for window in windows], torch.stack(threes, dim=1)


def _errors(parts: Mapping[str, nn.Module], data: Dataset) -> Errors:
    windows = list(count_windows(data.test, TICKS, 1000, 1, 0))
    with evaluating(nn.ModuleList(parts.values())):
        odd, threes = _whole(parts, torch.cat([x for x, _ in windows], dim=1))
    said = [(threes[:, tick], one) for tick, one in enumerate(odd)]
    right = [float(fast_accuracy(TICKS, counts, y)) for counts, (_, y) in zip(said, windows, strict=True)]
    last = float(slow_accuracy(TICKS, said[-1], windows[-1][1]))
    return 100 * (1 - sum(right) / TICKS), 100 * (1 - last)


def _trials(source: str, full: bool) -> list[Trial]:
    seeds = range(3 if full else 1)
    return [
        Trial(f"{method}, seed {seed}", partial(_run, source, method, seed)) for method in METHODS for seed in seeds
    ]


def _table(results: Mapping[str, Figures]) -> Table:
    heads = ("", "odd wrong, %", "threes wrong, %", "sequences to lock-step's error of odd", "seconds to that")
    drawn = Table(*heads, box=MARKDOWN)
    goal = results.get("lock-step, seed 0")
    for method in METHODS:
        line = results.get(f"{method}, seed 0")
        if line is not None:
            there = _first(line, _means(goal["curve"])[-1][ODD] if goal else 0.0)
            told = ("-", "-") if there is None else (f"{there[0]:,.0f}", f"{there[1]:.0f}")
            last = _means(line["curve"])[-1]
            threes = line["threes_error"] if isnan(last[THREES]) else last[THREES]
            drawn.add_row(method, f"{last[ODD]:.1f}", f"{threes:.1f}", *told)
    return drawn


def _draw(results: Mapping[str, Figures], file: Path) -> None:
    panels = {"odd, fast network": ODD, "threes, slow network": THREES}
    readings = {
        title: {
            key.removesuffix(", seed 0"): [(each[0], each[place]) for each in line["curve"]]
            for key, line in results.items()
            if key.endswith("seed 0") and not isnan(line["curve"][0][place])
        }
        for title, place in panels.items()
    }
    draw_readings(readings, "sequences", "wrong, %", file)


def _first(line: Figures, goal: float) -> tuple[float, float] | None:
    """Return the sequences and seconds after which the fast network was as good as that."""
    return next(((reading[0], reading[1]) for reading in _means(line["curve"]) if reading[ODD] <= goal), None)


def _means(curve: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Return after each reading when it was, and the means of the last few errors."""
    lots = [curve[last - SMOOTHED : last] for last in range(SMOOTHED, len(curve) + 1)]
    return [(*lot[-1][:ODD], *(mean(values) for values in list(zip(*lot, strict=True))[ODD:])) for lot in lots]


ENTRIES = {
    f"two-clocks-{source}": Entry(f"Two clocks, on {source}", partial(_trials, source), _table, _draw)
    for source in ("mnist", "digits")
}
