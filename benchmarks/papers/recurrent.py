"""Paper A, recurrent nets: how far truncated backprop gets with a guess of what comes after each window, and without.

Copy and Repeat Copy get longer as they are learnt; a character model reads a text on and on; digits come row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from math import log
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from stepahead.launch import Curriculum, Dataset, Text, Track, copying, minibatches, read_text, streams
from stepahead.launch.sequences import copied_steps
from stepahead.pipeline import Recurrent, SignalRecipe, StepReport, synthetic
from stepahead.pipeline.groups import evaluating
from stepahead.pipeline.recurrent import Carried, forget_evaluation

from .entry import Budget, Entry, Figures, Trial, mean_of, of_seeds
from .figures import draw_readings
from .nets import CLASSES, images

__all__ = ["ENTRIES"]


@dataclass(frozen=True)
class Guessing:
    """How what comes after a window is guessed."""

    span: int
    """Of so many windows' losses the targets are made."""
    ahead: float = 0.0
    """Times what an auxiliary head missed, which guesses what will be guessed at the window's end; 0 has none."""


METHODS: dict[str, Guessing | None] = {
    "BPTT": None,
    "DNI": Guessing(1),
    "DNI+Aux": Guessing(1, ahead=1.0),
    "DNI, 3 windows": Guessing(3),
    "DNI+Aux/10, 3 windows": Guessing(3, ahead=0.1),
}
CLIP = 10.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """A net, and how it learns."""

    hidden: int
    batch: int
    batches: int
    """Of sequences, or of windows where they never end."""
    rate: float
    guess_rate: float
    """Of what guesses: it has to keep up."""
    guess_depth: int = 0
    """Hidden layers of what guesses. In a short run none: a linear guess is there sooner."""
    scale: float = 1.0
    """Times a guess when it is used."""
    bits: int = 4
    """Of a vector to copy."""


PAPER = Size(hidden=256, batch=256, batches=2_000_000, rate=7e-5, guess_rate=7e-5, guess_depth=1, scale=0.1, bits=8)
PAPER_TEXT = Size(hidden=1024, batch=32, batches=500_000, rate=7e-5, guess_rate=7e-5, guess_depth=1, scale=0.1)
COPYING = Size(hidden=128, batch=64, batches=10_000, rate=1e-3, guess_rate=2e-3)
TEXT = Size(hidden=128, batch=32, batches=6_000, rate=2e-3, guess_rate=2e-3, guess_depth=1, scale=0.1)
ROWS = Size(hidden=64, batch=64, batches=2_000, rate=1e-3, guess_rate=1e-3)
READINGS = 20
"""Along a run."""


class Net(nn.Module):
    """An LSTM that may guess what comes after a window, a linear head, and their optimizer."""

    def __init__(self, inputs: int, outputs: int, method: str, size: Size, windows: int | None = None) -> None:
        super().__init__()
        guessing = METHODS[method]
        self.core = Recurrent(
            nn.LSTM(inputs, size.hidden, batch_first=True),
            _guess(size) if guessing else None,
            ahead=_guess(size, propagates=True) if guessing and guessing.ahead else None,
            ahead_scale=guessing.ahead if guessing else 1.0,
            span=guessing.span if guessing else 1,
            scale=size.scale,
            windows=windows,
        )
        self.head = nn.Linear(size.hidden, outputs)
        self.optimizer = Adam(self.parameters(), lr=size.rate, fused=True)

    def forward(self, x: Tensor, *, last: bool = False) -> Tensor:
        outputs: Tensor = self.head(self.core(x, last=last))
        return outputs

    def step(self, loss: Tensor) -> None:
        """Go back through the window, and step."""
        self.optimizer.zero_grad()
        self.core.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), CLIP)
        self.optimizer.step()


def _guess(size: Size, *, propagates: bool = False) -> SignalRecipe:
    optimizer = partial(Adam, lr=size.guess_rate, fused=True)
    shape = {"hidden": size.hidden, "depth": size.guess_depth, "norm": "layer" if size.guess_depth else None}
    return synthetic("mlp", optimizer=optimizer, propagates=propagates, **shape)  # type: ignore[arg-type]


@dataclass
class Progress:
    """A net and how far it has come."""

    net: Net
    curriculum: Curriculum
    """Of what is copied."""
    step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    carried: Carried = field(default_factory=Carried)
    random: Tensor = field(default_factory=torch.get_rng_state)

    def __getstate__(self) -> dict[str, object]:
        """Return also where in a sequence it is, and what is drawn next; targets in the making are lost."""
        return {**self.__dict__, "carried": self.net.core.carried, "random": torch.get_rng_state()}

    def resume(self) -> None:
        """Go on in the middle of a sequence, and draw what is drawn next."""
        self.net.core.carried = self.carried
        torch.set_rng_state(self.random)


def _begin(
    inputs: int,
    outputs: int,
    method: str,
    size: Size,
    seed: int,
    *,
    windows: int | None = None,
    repeats: bool = False,
) -> Progress:
    torch.manual_seed(seed)
    return Progress(Net(inputs, outputs, method, size, windows), Curriculum(repeats=repeats))


def _train(
    begin: Callable[[], Progress],
    learn: Callable[[Progress], Iterator[float]],
    size: Size,
    steps: int,
    read: Callable[[Net], float] | None,
    budget: Budget,
    title: str,
) -> Progress:
    """Go on where a run was broken off, or begin; read how good it is now and then."""
    run = budget.unfinished.load((size, steps), begin)
    run.resume()
    losses = enumerate(islice(learn(run), steps - run.step), start=run.step)
    reports = (StepReport(step, size.batch, loss) for step, loss in losses)
    for report in Track(reports, total=steps, title=title, every_seconds=60):
        run.step = report.step + 1
        if read is not None and run.step % max(steps // READINGS, 1) == 0:
            run.curve.append((run.step, read(run.net)))
        budget.unfinished.save(run)
    return run


def _copy(repeats: bool, window: int, method: str, seed: int, budget: Budget, title: str) -> Figures:
    """Learn to copy for so many batches, and return how far it came."""
    size = PAPER if budget.full else COPYING
    begin = partial(_begin, size.bits + 2, size.bits + 1, method, size, seed, repeats=repeats)
    run = _train(begin, partial(_copies, size, window), size, size.batches, None, budget, title)
    return {
        "solved": run.curriculum.solved,
        "lengths": run.curriculum.steps,
        "history": run.curriculum.history,
        "batches": size.batches,
        "cosine": _cosine(run.net),
    }


def _copies(size: Size, window: int, run: Progress) -> Iterator[float]:
    while True:
        error = _copy_once(run.net, run.curriculum, window, size)
        run.curriculum.take(error)
        yield error


def _copy_once(net: Net, curriculum: Curriculum, window: int, size: Size) -> float:
    """Learn from one batch, window by window; return the error in bits for each bit.

    The loss is a sum over bits and steps: with a mean the gradients would be small beside what Adam moves guesses by.
    """
    task = copying(curriculum.length, curriculum.repeats, batch=size.batch, bits=size.bits)
    parts = list(zip(task.x.split(window, 1), task.y.split(window, 1), task.counts.split(window), strict=True))
    error = 0.0
    for number, (x, y, counts) in enumerate(parts, start=1):
        outputs = net(x, last=number == len(parts))
        losses = F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(dim=2) * counts
        net.step(losses.sum() / size.batch)
        error += float(losses.detach().sum())
    return error / (size.batch * int(task.counts.sum()) * size.bits * log(2))


def _characters(window: int, method: str, seed: int, budget: Budget, title: str) -> Figures:
    """Learn to tell a text's next character, and return the bits that it takes in the mean."""
    size, text = PAPER_TEXT if budget.full else TEXT, read_text(_text_file(budget.data))
    letters = len(text.alphabet)
    steps = size.batches * SHORTEST // window  # the same characters whatever the window
    begin = partial(_begin, letters, letters, method, size, seed)
    run = _train(begin, partial(_texts, text, size, window), size, steps, lambda net: _bits(net, text), budget, title)
    curve = [(step * window * size.batch, bits) for step, bits in run.curve]
    return {"bits": _bits(run.net, text), "curve": curve, "cosine": _cosine(run.net)}


def _texts(text: Text, size: Size, window: int, run: Progress) -> Iterator[float]:
    """Go over the text again and again."""
    passes = (enumerate(streams(text.train, size.batch, window)) for _ in count())
    for number, (x, y) in islice(chain.from_iterable(passes), run.step, None):
        if number == 0:
            run.net.core.reset()
        loss = _next_loss(run.net, text, x, y)
        run.net.step(loss * window)
        yield float(loss.detach())


def _next_loss(net: Net, text: Text, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(F.one_hot(x, len(text.alphabet)).float()).flatten(0, 1), y.flatten())


def _bits(net: Net, text: Text) -> float:
    forget_evaluation(net)
    with evaluating(net):
        return mean(float(_next_loss(net, text, x, y)) for x, y in streams(text.test, 8, 100)) / log(2)


def _text_file(folder: Path) -> Path:
    return folder / "text" / "tinyshakespeare.txt" if (folder / "text").is_dir() else folder


def _digit_rows(window: int, method: str, seed: int, budget: Budget, title: str) -> Figures:
    """Learn digits that come row by row: what one is, is asked at its end alone."""
    size, data = ROWS, images(budget.data, False)
    begin = partial(_begin, 28, CLASSES, method, size, seed, windows=28 // window)
    learn = partial(_rows, data, size, window, seed)
    run = _train(begin, learn, size, size.batches, lambda net: _row_error(net, data), budget, title)
    return {"test_error": _row_error(run.net, data), "curve": run.curve, "cosine": _cosine(run.net)}


def _rows(data: Dataset, size: Size, window: int, seed: int, run: Progress) -> Iterator[float]:
    for x, y in islice(minibatches(data.train, size.batch, seed=seed), run.step, None):
        parts = x.flatten(1, 2).split(window, dim=1)
        loss = torch.zeros(())
        for number, part in enumerate(parts, start=1):
            outputs = run.net(part)[:, -1]
            loss = F.cross_entropy(outputs, y) * (number == len(parts))
            run.net.step(loss)
        yield float(loss.detach())


def _row_error(net: Net, data: Dataset) -> float:
    """Return the share of test images that are told wrong at their last row, in percent."""
    with evaluating(net):
        right = [
            float((net(x.flatten(1, 2), last=True)[:, -1].argmax(dim=1) == y).sum())
            for x, y in zip(data.test[0].split(1000), data.test[1].split(1000), strict=True)
        ]
    return 100 * (1 - sum(right) / len(data.test[0]))


def _cosine(net: Net) -> float | None:
    return None if net.core.quality is None else round(net.core.quality.cosine, 3)


WINDOWS = {2: "T=2", 3: "T=3", 4: "T=4", 5: "T=5"}
WHOLE = {10_000: "whole"}
"""Longer than any sequence: backprop through all of it needs no guess."""
SHORTEST = 8
"""The window that a number of batches of text is counted in."""
TEXTS = [("BPTT", 8), ("DNI", 8), ("DNI+Aux", 8), ("BPTT", 20), ("BPTT", 40)]
ROW_WINDOWS = [("BPTT", 4), ("DNI", 4), ("DNI+Aux", 4), ("BPTT", 28)]
FIGURES: dict[str, dict[str, str]] = {
    "copy": {"BPTT": "7 8 10 8", "DNI": "16 14 18 18", "DNI+Aux": "16 17 19 18"},
    "repeat-copy": {"BPTT": "7 5 19 23", "DNI": "39 33 39 59", "DNI+Aux": "39 59 67 59"},
}
"""The paper's, for windows of 2 to 5."""


def _copy_trials(repeats: bool, full: bool) -> list[Trial]:
    return [
        Trial(f"{method}, {name}, seed {seed}", partial(_copy, repeats, window, method, seed))
        for window, name in (WINDOWS | WHOLE).items()
        for method in (["BPTT"] if window in WHOLE else METHODS)
        for seed in range(3 if full else 1)
    ]


def _copy_table(name: str, results: Mapping[str, Figures]) -> Table:
    drawn = Table("solved", *(WINDOWS | WHOLE).values(), box=MARKDOWN)
    for method in METHODS:
        papers = dict(zip(WINDOWS.values(), FIGURES[name].get(method, "").split(), strict=False))
        cells = [_solved(of_seeds(results, f"{method}, {t}"), papers.get(t)) for t in (WINDOWS | WHOLE).values()]
        drawn.add_row(method, *cells)
    return drawn


def _draw_copy(results: Mapping[str, Figures], file: Path) -> None:
    """Draw how long what was learnt is, over batches: a panel for each window."""
    panels = {
        name: {
            method: _steps_learnt(line)
            for method in METHODS
            if (line := results.get(f"{method}, {name}, seed 0")) is not None and line["history"]
        }
        for name in WINDOWS.values()
    }
    found = {title: lines for title, lines in panels.items() if lines}
    draw_readings(found, "batches", "length that was learnt", file, counts=True)


def _steps_learnt(line: Figures) -> list[tuple[int, int]]:
    """Return after how many batches which length was learnt; of Repeat Copy all steps are counted."""
    learnt = [(batches, copied_steps(length, repeats)[0]) for batches, length, repeats in line["history"]]
    return [*learnt, (line["batches"], learnt[-1][1])]


def _draw_rows(
    cases: Sequence[tuple[str, int]], along: str, label: str, results: Mapping[str, Figures], file: Path
) -> None:
    lines = {f"{method}, T={window}": results.get(f"{method}, T={window}, seed 0") for method, window in cases}
    draw_readings({"": {name: line["curve"] for name, line in lines.items() if line}}, along, label, file)


def _solved(lines: Sequence[Figures], paper: str | None) -> str:
    """Return N, or N x R and both lengths, beside the paper's."""

    def words(line: Figures) -> str:
        (length, repeats), (whole, from_there) = line["solved"], line["lengths"]
        return str(length) if repeats is None else f"{length} x {repeats}: {whole}, {from_there}"

    return ("; ".join(map(words, lines)) or "-") + ("" if paper is None else f" (paper {paper})")


def _trials(run: Any, cases: Sequence[tuple[str, int]], full: bool) -> list[Trial]:
    return [
        Trial(f"{method}, T={window}, seed {seed}", partial(run, window, method, seed))
        for method, window in cases
        for seed in range(3)
    ]


def _rows_table(
    cases: Sequence[tuple[str, int]], head: str, figure: str, papers: Mapping[str, str], results: Mapping[str, Figures]
) -> Table:
    drawn = Table("", head, "cosine of the guess", *(["paper (PTB, LSTM of 1024)"] if papers else []), box=MARKDOWN)
    for method, window in cases:
        name = f"{method}, T={window}"
        lines = of_seeds(results, name)
        cosines = [line["cosine"] for line in lines if line["cosine"] is not None]
        cells = [mean_of([line[figure] for line in lines]) if lines else "-", mean_of(cosines) if cosines else ""]
        drawn.add_row(name, *cells, *([papers.get(name, "")] if papers else []))
    return drawn


PTB = {"BPTT, T=8": "1.35", "DNI, T=8": "1.34", "DNI+Aux, T=8": "1.33", "BPTT, T=20": "1.35", "BPTT, T=40": "1.34"}
TITLE = "{}: the longest that was learnt"
ENTRIES = {
    "copy": Entry(TITLE.format("Copy"), partial(_copy_trials, False), partial(_copy_table, "copy"), _draw_copy),
    "repeat-copy": Entry(
        TITLE.format("Repeat Copy, N x R"),
        partial(_copy_trials, True),
        partial(_copy_table, "repeat-copy"),
        _draw_copy,
    ),
    "characters": Entry(
        "Characters of a text: bits for each",
        partial(_trials, _characters, TEXTS),
        partial(_rows_table, TEXTS, "bits for each character", "bits", PTB),
        partial(_draw_rows, TEXTS, "characters", "bits for each"),
    ),
    "digit-rows": Entry(
        "MNIST row by row, asked at the end",
        partial(_trials, _digit_rows, ROW_WINDOWS),
        partial(_rows_table, ROW_WINDOWS, "test error, %", "test_error", {}),
        partial(_draw_rows, ROW_WINDOWS, "batches", "test error, %"),
    ),
}
