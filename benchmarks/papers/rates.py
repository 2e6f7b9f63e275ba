"""Rates and guesses of short runs, chosen on training images that are held back: the test images play no part."""

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


DEEP = Course(6000, 1e-4, points=10)
CHOICES = {
    "CIFAR-10 in four layers": Choice(
        layers=cnn(4, 32, 32, colours=3),
        data=lambda folder: cifar(folder, False),
        tried={
            f"{method}, {rate:g}": (SHORT_CONV[method], Course(1600, rate, 128, points=10))
            for method in ("backprop", "cDNI")
            for rate in (1e-3, 5e-4)
        },
    ),
    "MNIST in 21 layers": Choice(
        layers=fcn(21),
        data=lambda folder: images(folder, True),
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
    """Return the same whether in full or not: a full run has the paper's rates."""
    return [
        Trial(f"{name}, {tried}, seed {seed}", partial(_run, name, tried, seed))
        for name, choice in CHOICES.items()
        for tried in choice.tried
        for seed in range(choice.seeds)
    ]


def _table(results: Mapping[str, Figures]) -> Table:
    rows = [(f"{name}, {tried}", [f"{name}, {tried}"]) for name, choice in CHOICES.items() for tried in choice.tried]
    return rows_table(["", ERROR], rows, results, "test_error")


DRAW = partial(draw_curves, error=ERROR)
ENTRIES = {"rates": Entry("Rates and guesses, on training images held back", _trials, _table, DRAW)}
