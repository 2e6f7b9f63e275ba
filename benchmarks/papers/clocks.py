"""Paper A, two networks at two rates: going back through all T x T steps, and a guess for each message in its place."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Adam

from stepahead.launch import Dataset, Job, digits, train
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
    assemble,
    cut_model,
    silent,
    synthetic,
)
from stepahead.pipeline.groups import evaluating
from stepahead.workers import newest_snapshot, read_snapshot

from .entry import Budget, Entry, Figures, Trial, counted
from .figures import draw_readings
from .nets import images
from .processes import readings_of

__all__ = ["ENTRIES"]

TICKS = 4
ODD, THREES = 2, 3
"""Their places in a reading, behind its sequences and seconds."""


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
SHORT = {
    "mnist": Size(width=64, batch=64, sequences=2_500, rate=5e-4, guess_rate=3e-3),
    "digits": Size(width=64, batch=64, sequences=1_000, rate=5e-4, guess_rate=3e-3),
}
"""With more sequences all systems have learnt the 1,438 bundled images by heart, and clocks make no difference."""
READINGS, SMOOTHED = 30, 5
"""Of the errors along a run; single ones go up and down, so the mean of the last few is what is compared."""
Errors = tuple[float, float]
"""The share of counts that are wrong: of odd digits, of threes."""


def _run(source: str, method: str, seed: int, budget: Budget, title: str) -> Figures:
    size = PAPER if budget.full else SHORT[source]
    data = digits() if source == "digits" else images(budget.data, True)
    if method == TOGETHER:
        return _in_processes(size, data, seed)
    every, curve = size.sequences // READINGS, list[tuple[int, float, float, float]]()
    begun, measured = time.monotonic(), 0.0
    for sequence, errors in zip(counted(size.sequences, title), METHODS[method](size, data, seed), strict=True):
        if (sequence + 1) % every == 0:
            start = time.monotonic()
            curve.append((sequence + 1, round(start - begun - measured, 1), *errors()))
            measured += time.monotonic() - start
    return {"odd_error": curve[-1][ODD], "threes_error": curve[-1][THREES], "curve": curve, "sequences": size.sequences}


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
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        made = train(
            job,
            cut="slow",
            steps=TICKS * size.sequences,
            evaluate_every=TICKS * (size.sequences // READINGS),
            seed=seed,
            baseline="none",
            run_dir=str(run),
        )
        read = readings_of(run)
        net = _graph(data, size, None).uncut()
        net.load_state_dict(read_snapshot(newest_snapshot(run)))
    curve = [(step // TICKS, round(seconds, 1), 100 * (1 - metrics["odd"]), None) for step, seconds, metrics in read]
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


METHODS: dict[str, Callable[[Size, Dataset, int], Iterator[Callable[[], Errors]]]] = {
    "lock-step": _lock_step,
    "decoupled": partial(_apart, None),
    "no gradient from the slow one": partial(_apart, silent),
}
TOGETHER = "decoupled, two processes"


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
        Trial(f"{method}, seed {seed}", partial(_run, source, method, seed))
        for method in (*METHODS, TOGETHER)
        for seed in seeds
    ]


def _table(results: Mapping[str, Figures]) -> Table:
    heads = ("", "odd wrong, %", "threes wrong, %", "sequences to lock-step's error of odd", "seconds to that")
    drawn = Table(*heads, box=MARKDOWN)
    goal = results.get("lock-step, seed 0")
    for method in (*METHODS, TOGETHER):
        line = results.get(f"{method}, seed 0")
        if line is not None:
            there = _first(line, _means(goal["curve"])[-1][ODD] if goal else 0.0)
            told = ("-", "-") if there is None else (f"{there[0]:,.0f}", f"{there[1]:.0f}")
            last = _means(line["curve"])[-1]
            threes = line["threes_error"] if last[THREES] is None else last[THREES]
            drawn.add_row(method, f"{last[ODD]:.1f}", f"{threes:.1f}", *told)
    return drawn


def _draw(results: Mapping[str, Figures], file: Path) -> None:
    panels = {"odd, fast network": ODD, "threes, slow network": THREES}
    readings = {
        title: {
            key.removesuffix(", seed 0"): [(each[0], each[place]) for each in line["curve"]]
            for key, line in results.items()
            if key.endswith("seed 0") and line["curve"][0][place] is not None
        }
        for title, place in panels.items()
    }
    draw_readings(readings, "sequences", "wrong, %", file)


def _first(line: Figures, goal: float) -> tuple[float, float] | None:
    """Return the sequences and seconds after which the fast network was as good as that."""
    return next(((reading[0], reading[1]) for reading in _means(line["curve"]) if reading[ODD] <= goal), None)


def _means(curve: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return after each reading when it was, and the means of the last few errors, of those that were read."""
    lots = [curve[last - SMOOTHED : last] for last in range(SMOOTHED, len(curve) + 1)]
    return [(*lot[-1][:ODD], *(_mean([each[place] for each in lot]) for place in (ODD, THREES))) for lot in lots]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


ENTRIES = {
    f"two-clocks-{source}": Entry(f"Two clocks, on {source}", partial(_trials, source), _table, _draw)
    for source in ("mnist", "digits")
}
