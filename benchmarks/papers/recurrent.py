"""Paper A, recurrent nets: how far truncated backprop gets with a guess of what comes after each window, and without.

Copy and Repeat Copy get longer as they are learnt; a character model reads a text on and on; digits come row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
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

from stepahead.launch import Curriculum, Track, copying, minibatches, read_text, streams
from stepahead.pipeline import Recurrent, SignalRecipe, StepReport, synthetic

from .entry import Budget, Entry, Figures, Trial, mean_of, of_seeds
from .nets import CLASSES, images

__all__ = ["ENTRIES"]

METHODS = ("BPTT", "DNI", "DNI+Aux")
BITS = 8
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
    scale: float = 1.0
    """Times a guess when it is used."""


PAPER = Size(hidden=256, batch=256, batches=2_000_000, rate=7e-5, guess_rate=7e-5, scale=0.1)
PAPER_TEXT = Size(hidden=1024, batch=32, batches=500_000, rate=7e-5, guess_rate=7e-5, scale=0.1)
COPYING = Size(hidden=64, batch=64, batches=20_000, rate=1e-3, guess_rate=1e-2)
TEXT = Size(hidden=128, batch=32, batches=6_000, rate=2e-3, guess_rate=2e-3)
ROWS = Size(hidden=64, batch=64, batches=2_000, rate=1e-3, guess_rate=1e-3)


class Net(nn.Module):
    """An LSTM that may guess what comes after a window, a linear head, and their optimizer."""

    def __init__(self, inputs: int, outputs: int, method: str, size: Size, windows: int | None = None) -> None:
        super().__init__()
        guesses = method != "BPTT"
        self.core = Recurrent(
            nn.LSTM(inputs, size.hidden, batch_first=True),
            _guess(size) if guesses else None,
            ahead=_guess(size, propagates=True) if method == "DNI+Aux" else None,
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
    return synthetic("mlp", hidden=size.hidden, optimizer=optimizer, propagates=propagates)


def _copy(repeats: bool, window: int, method: str, seed: int, budget: Budget, title: str) -> Figures:
    """Learn to copy for so many batches, and return how far it came."""
    size = PAPER if budget.full else COPYING
    torch.manual_seed(seed)
    net, curriculum = Net(BITS + 2, BITS + 1, method, size), Curriculum(repeats=repeats)

    def learn() -> Iterator[StepReport]:
        for step in range(size.batches):
            error = _copy_once(net, curriculum, window, size.batch)
            curriculum.take(error)
            yield StepReport(step, size.batch, error)

    for _ in Track(learn(), total=size.batches, title=title, every_seconds=60):
        pass
    return {
        "solved": curriculum.solved,
        "lengths": curriculum.steps,
        "history": curriculum.history,
        "batches": size.batches,
        "cosine": _cosine(net),
    }


def _copy_once(net: Net, curriculum: Curriculum, window: int, batch: int) -> float:
    """Learn from one batch, window by window; return the error in bits for each bit.

    The loss is a sum over bits and steps: with a mean the gradients would be small beside what Adam moves guesses by.
    """
    task = copying(curriculum.length, curriculum.repeats, batch=batch, bits=BITS)
    parts = list(zip(task.x.split(window, 1), task.y.split(window, 1), task.counts.split(window), strict=True))
    error = 0.0
    for number, (x, y, counts) in enumerate(parts, start=1):
        outputs = net(x, last=number == len(parts))
        losses = F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(dim=2) * counts
        net.step(losses.sum() / batch)
        error += float(losses.detach().sum())
    return error / (batch * int(task.counts.sum()) * BITS * log(2))


def _characters(window: int, method: str, seed: int, budget: Budget, title: str) -> Figures:
    """Learn to tell a text's next character, and return the bits that it takes in the mean."""
    size, text = PAPER_TEXT if budget.full else TEXT, read_text(_text_file(budget.data))
    torch.manual_seed(seed)
    letters = len(text.alphabet)
    net = Net(letters, letters, method, size)
    steps = size.batches * SHORTEST // window  # the same characters whatever the window

    def learn() -> Iterator[StepReport]:
        step = 0
        while True:  # pass after pass over the text
            for x, y in streams(text.train, size.batch, window):
                loss = F.cross_entropy(net(F.one_hot(x, letters).float()).flatten(0, 1), y.flatten())
                net.step(loss * window)
                yield StepReport(step, size.batch, float(loss.detach()))
                step += 1
            net.core.reset()

    for _ in Track(islice(learn(), steps), total=steps, title=title, every_seconds=60):
        pass
    return {"bits": _bits(net, text.test, letters), "characters": steps * window * size.batch, "cosine": _cosine(net)}


@torch.no_grad()
def _bits(net: Net, text: Tensor, letters: int) -> float:
    net.eval()
    losses = [
        float(F.cross_entropy(net(F.one_hot(x, letters).float()).flatten(0, 1), y.flatten()))
        for x, y in streams(text, 8, 100)
    ]
    return mean(losses) / log(2)


def _text_file(folder: Path) -> Path:
    return folder / "text" / "tinyshakespeare.txt" if (folder / "text").is_dir() else folder


def _digit_rows(window: int, method: str, seed: int, budget: Budget, title: str) -> Figures:
    """Learn digits that come row by row: what one is, is asked at its end alone."""
    size, data = ROWS, images(budget.data, False)
    torch.manual_seed(seed)
    net = Net(28, CLASSES, method, size, windows=28 // window)

    def learn() -> Iterator[StepReport]:
        for step, (x, y) in enumerate(islice(minibatches(data.train, size.batch, seed=seed), size.batches)):
            parts = x.flatten(1, 2).split(window, dim=1)
            loss = torch.zeros(())
            for number, part in enumerate(parts, start=1):
                outputs = net(part)[:, -1]
                loss = F.cross_entropy(outputs, y) * (number == len(parts))
                net.step(loss)
            yield StepReport(step, size.batch, float(loss.detach()))

    for _ in Track(learn(), total=size.batches, title=title, every_seconds=60):
        pass
    with torch.no_grad():
        net.eval()
        right = [
            float((net(x.flatten(1, 2), last=True)[:, -1].argmax(dim=1) == y).sum())
            for x, y in zip(data.test[0].split(1000), data.test[1].split(1000), strict=True)
        ]
    return {"test_error": 100 * (1 - sum(right) / len(data.test[0])), "cosine": _cosine(net)}


def _cosine(net: Net) -> float | None:
    return None if net.core.quality is None else round(net.core.quality.cosine, 3)


WINDOWS = (2, 3, 4, 5)
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
        Trial(f"{method}, T={window}, seed {seed}", partial(_copy, repeats, window, method, seed))
        for window in WINDOWS
        for method in METHODS
        for seed in range(3 if full else 1)
    ]


def _copy_table(name: str, results: Mapping[str, Figures]) -> Table:
    drawn = Table("solved", *(f"T={window}" for window in WINDOWS), box=MARKDOWN)
    for method in METHODS:
        papers = FIGURES[name][method].split()
        cells = [
            _solved(of_seeds(results, f"{method}, T={window}"), paper)
            for window, paper in zip(WINDOWS, papers, strict=True)
        ]
        drawn.add_row(method, *cells)
    return drawn


def _solved(lines: Sequence[Figures], paper: str) -> str:
    """Return N, or N x R and both lengths, beside the paper's."""

    def words(line: Figures) -> str:
        (length, repeats), (whole, from_there) = line["solved"], line["lengths"]
        return str(length) if repeats is None else f"{length} x {repeats}: {whole}, {from_there}"

    return f"{'; '.join(map(words, lines)) or '-'} (paper {paper})"


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
    "copy": Entry(TITLE.format("Copy"), partial(_copy_trials, False), partial(_copy_table, "copy")),
    "repeat-copy": Entry(
        TITLE.format("Repeat Copy, N x R"),
        partial(_copy_trials, True),
        partial(_copy_table, "repeat-copy"),
    ),
    "characters": Entry(
        "Characters of a text: bits for each",
        partial(_trials, _characters, TEXTS),
        partial(_rows_table, TEXTS, "bits for each character", "bits", PTB),
    ),
    "digit-rows": Entry(
        "MNIST row by row, asked at the end",
        partial(_trials, _digit_rows, ROW_WINDOWS),
        partial(_rows_table, ROW_WINDOWS, "test error, %", "test_error", {}),
    ),
}
