"""What short runs step on and how fast: chosen on training images held back, not on test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.table import Table

from stepahead.launch import Dataset

from .entry import Budget, Entry, Figures, Trial, rows_table
from .feedforward import data_for, layers_for, methods_for, short_course
from .figures import draw_curves
from .training import Course, Method, Setting, guessing, train

__all__ = ["ENTRIES", "held_back"]

HELD_BACK = 5000
LABEL = "error on images held back, %"


@dataclass(frozen=True)
class Choice:
    """What is tried on the net of an entry, in runs that are alike."""

    net: str
    depth: int
    tried: Mapping[str, tuple[Method, Course]]


def held_back(data: Dataset, count: int = HELD_BACK) -> Dataset:
    """Return the training images but the first `count`, and those in place of the test images."""
    x, y = data.train
    return Dataset((x[count:], y[count:]), (x[:count], y[:count]))


def _guesses(kinds: Mapping[str, Mapping[str, int]], course: Course, faster: float) -> dict[str, tuple[Method, Course]]:
    return {kind: (guessing(kind, labels=True, faster=faster, **options), course) for kind, options in kinds.items()}


def _rates_without_labels(net: str, depth: int, rates: Sequence[float]) -> Choice:
    """Return a choice among rates of the layers, with guesses at ten times those."""
    method = methods_for(net, full=False)["DNI"]
    tried = {f"layers at {rate:g}": (method, Course(2000, rate, points=10)) for rate in rates}
    return Choice(net, depth, tried)


DEEP = replace(short_course("mnist-deep", 21, "cDNI"), points=10)
CHOICES = {
    "guesses: CIFAR-10 in three layers": Choice(
        net="cifar-cnn",
        depth=3,
        tried=_guesses({"conv": {"depth": 0}, "whole": {}, "softmax": {}}, Course(400, 1e-3, 128, points=10), faster=1),
    ),
    "guesses: MNIST in 21 layers": Choice(
        net="mnist-deep",
        depth=21,
        tried=_guesses({"linear": {}, "low-rank": {"rank": 32}, "softmax": {}}, replace(DEEP, steps=800), faster=10),
    ),
    "no labels: MNIST in six layers": _rates_without_labels("mnist-fcn", 6, (3e-4, 1e-4, 3e-5, 1e-5)),
    "no labels: CIFAR-10 in four linear layers": _rates_without_labels("cifar-fcn", 4, (3e-4, 3e-5)),
    "rates: MNIST in 21 layers": Choice(
        net="mnist-deep",
        depth=21,
        tried={
            f"guesses at {faster * DEEP.rate:g}": (guessing("softmax", labels=True, faster=faster), DEEP)
            for faster in (10, 3)
        },
    ),
}


def _run(name: str, tried: str, budget: Budget, title: str) -> Figures:
    choice = CHOICES[name]
    method, course = choice.tried[tried]
    setting = Setting(layers=layers_for(choice.net, choice.depth, full=False), method=method, course=course)
    return train(setting, held_back(data_for(choice.net, budget.data)), budget, title)


def _trials(full: bool) -> list[Trial]:
    """Return the same in full, which has nothing to choose: what is chosen are short runs' guesses and rates."""
    return [
        Trial(f"{name}, {tried}, seed 0", partial(_run, name, tried))
        for name, choice in CHOICES.items()
        for tried in choice.tried
    ]


def _table(results: Mapping[str, Figures]) -> Table:
    rows = [(f"{name}, {tried}", [f"{name}, {tried}"]) for name, choice in CHOICES.items() for tried in choice.tried]
    return rows_table(["", LABEL], rows, results, "test_error")


DRAW = partial(draw_curves, label=LABEL)
ENTRIES = {"choices": Entry("Guesses and rates, chosen on training images held back", _trials, _table, DRAW)}
