"""What short runs step on and how fast, chosen on training images that are held back: test images play no part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from stepahead.launch import Dataset

from .entry import Budget, Entry, Figures, Trial, rows_table
from .feedforward import SHORT_CONV
from .figures import draw_curves
from .nets import Layers, cifar, cnn, fcn, images
from .training import Course, Method, Setting, guessing, train

__all__ = ["ENTRIES", "held_back"]

HELD_BACK = 5000
ERROR = "error on images held back, %"


@dataclass(frozen=True)
class Choice:
    """What is tried on a net, in runs that are alike."""

    layers: Layers
    data: Callable[[Path], Dataset]
    tried: Mapping[str, tuple[Method, Course]]
    seeds: int = 1


def held_back(data: Dataset, count: int = HELD_BACK) -> Dataset:
    """Return the training images but the first `count`, and those in place of the test images."""
    x, y = data.train
    return Dataset((x[count:], y[count:]), (x[:count], y[:count]))


def _colours(folder: Path) -> Dataset:
    return cifar(folder, False)


def _flat_digits(folder: Path) -> Dataset:
    return images(folder, True)


def _guesses(kinds: Mapping[str, Mapping[str, int]], course: Course, faster: float) -> dict[str, tuple[Method, Course]]:
    return {kind: (guessing(kind, labels=True, faster=faster, **options), course) for kind, options in kinds.items()}


BRIEF, DEEP_BRIEF = Course(400, 1e-3, 128, points=10), Course(800, 1e-4, points=10)
DEEP = Course(6000, 1e-4, points=10)
CHOICES = {
    "guesses, CIFAR-10 in three layers": Choice(
        layers=cnn(3, 32, 32, colours=3),
        data=_colours,
        tried=_guesses({"conv": {"depth": 0}, "whole": {}, "softmax": {}}, BRIEF, faster=1),
    ),
    "guesses, MNIST in 21 layers": Choice(
        layers=fcn(21),
        data=_flat_digits,
        tried=_guesses({"linear": {}, "low-rank": {"rank": 32}, "softmax": {}}, DEEP_BRIEF, faster=10),
    ),
    "rates, CIFAR-10 in four layers": Choice(
        layers=cnn(4, 32, 32, colours=3),
        data=_colours,
        tried={
            f"{method}, all at {rate:g}": (SHORT_CONV[method], Course(1600, rate, 128, points=10))
            for method in ("backprop", "cDNI")
            for rate in (1e-3, 5e-4)
        },
    ),
    "rates, MNIST in 21 layers": Choice(
        layers=fcn(21),
        data=_flat_digits,
        tried={
            f"guesses at {faster * DEEP.rate:g}": (guessing("softmax", labels=True, faster=faster), DEEP)
            for faster in (10, 3)
        },
        seeds=2,
    ),
}


def _run(name: str, tried: str, seed: int, budget: Budget, title: str) -> Figures:
    choice = CHOICES[name]
    method, course = choice.tried[tried]
    setting = Setting(layers=choice.layers, method=method, course=course, seed=seed)
    return train(setting, held_back(choice.data(budget.data)), budget, title)


def _trials(full: bool) -> list[Trial]:
    """Return the same whether in full or not: a full run has the paper's own."""
    return [
        Trial(f"{name}, {tried}, seed {seed}", partial(_run, name, tried, seed))
        for name, choice in CHOICES.items()
        for tried in choice.tried
        for seed in range(choice.seeds)
    ]


def _table(results: Mapping[str, Figures]) -> Table:
    rows = [(f"{name}, {tried}", [f"{name}, {tried}"]) for name, choice in CHOICES.items() for tried in choice.tried]
    return rows_table(["", ERROR], rows, results, "test_error")


def _draw(results: Mapping[str, Figures], file: Path) -> None:
    panels = {key.replace(", ", ": ", 1): line for key, line in results.items()}
    draw_curves(panels, file, error=ERROR)


ENTRIES = {"choices": Entry("Guesses and rates, chosen on training images held back", _trials, _table, _draw)}
