"""Paper A, table of feed-forward nets: every layer decoupled, with labels (cDNI) and without (DNI)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from stepahead.launch import Dataset

from .entry import Budget, Entry, Figures, Trial, rows_table
from .figures import draw_curves
from .nets import Layers, cifar, cnn, fcn, images
from .training import METHODS, Course, Method, Setting, course, guessing, slow_without_labels, train

__all__ = ["ENTRIES", "data_for", "layers_for", "methods_for", "short_course"]

CONV: dict[str, Method] = {
    "no backprop": METHODS["no backprop"],
    "backprop": METHODS["backprop"],
    "DNI": guessing("conv", labels=False, depth=2),
    "cDNI": guessing("conv", labels=True, depth=2),
}
"""For nets of convolutions: paper A's predictors."""
SHORT_CONV = {**CONV, "DNI": guessing("whole", labels=False), "cDNI": guessing("whole", labels=True)}
"""In short runs, those that see an image as a whole: they cost less than a layer, and learn in fewer steps."""
DEEP = {**METHODS, "cDNI": guessing("softmax", labels=True, faster=3)}
"""In a short run of 21 layers guesses must be there soon, and steady, for each is made of the one below: the error of a
softmax is, a linear map of h and the label is not."""
FULL_METHODS: dict[str, Mapping[str, Method]] = {
    "mnist-fcn": METHODS,
    "mnist-deep": METHODS,
    "mnist-cnn": CONV,
    "cifar-fcn": {**METHODS, "DNI": guessing("mlp", labels=False, hidden=4000, depth=1, norm="batch")},
    "cifar-cnn": CONV,
}
SHORT_METHODS: dict[str, Mapping[str, Method]] = {
    "mnist-fcn": METHODS,
    "mnist-deep": DEEP,
    "mnist-cnn": SHORT_CONV,
    "cifar-fcn": {**METHODS, "DNI": guessing("mlp", labels=False, faster=10, hidden=400, depth=1, norm="batch")},
    "cifar-cnn": {**SHORT_CONV, "DNI": guessing("whole", labels=False, faster=10)},
}

PAPER = {
    "mnist-fcn": {3: "9.3 2.0 1.9 2.2", 4: "12.6 1.8 2.2 1.9", 5: "16.2 1.8 3.4 1.7", 6: "21.4 1.8 4.3 1.6"},
    "mnist-cnn": {3: "0.9 0.8 0.9 1.0", 4: "2.8 0.6 0.7 0.8"},
    "cifar-fcn": {
        3: "54.9 43.5 42.5 48.5",
        4: "57.2 43.0 45.0 45.1",
        5: "59.6 41.7 46.9 43.5",
        6: "61.9 42.0 49.7 46.8",
    },
    "cifar-cnn": {3: "28.7 17.9 19.5 19.0", 4: "38.1 15.7 19.5 16.4"},
    "mnist-deep": {21: "- - - 2"},
}
"""Test error in percent after 500,000 steps: no backprop, backprop, DNI, cDNI."""


def layers_for(name: str, depth: int, full: bool) -> Layers:
    """Return the net of an entry, at its width."""
    if name == "cifar-fcn":
        return fcn(depth, inputs=3072, width=1000 if full else 400)
    if name == "mnist-cnn":
        return cnn(depth, 64 if full else 16, 28)
    if name == "cifar-cnn":
        return cnn(depth, 128 if full else 32, 32, colours=3)
    return fcn(depth)


def data_for(name: str, folder: Path) -> Dataset:
    """Return the images that an entry learns."""
    return (cifar if name.startswith("cifar") else images)(folder, not name.endswith("cnn"))


SHORT_COURSES = {
    "mnist-fcn": Course(4000, points=20),
    "mnist-deep": Course(4000, points=20),
    "mnist-cnn": Course(1200, 1e-3, 128, points=10),
    "cifar-fcn": Course(2000, points=20),
    "cifar-cnn": Course(14_400, 1e-3, 32, points=12),
}
OWN_COURSES: dict[tuple[str, str], dict[str, Any]] = {
    ("mnist-cnn", "DNI"): {"rate": 1e-3},
    ("cifar-cnn", "DNI"): {"rate": 1e-4},
    ("cifar-cnn", "cDNI"): {"rate": 3.5e-4},
    ("mnist-deep", "cDNI"): {"rate": 1e-4, "steps": 6000},
}
"""What rows have of their own: rates that guesses can follow, those of convolutions others than of linear layers."""
TWICE = [("cifar-cnn", 4)]
"""Entries and depths whose short runs are twice as long."""


def short_course(name: str, depth: int, method: str) -> Course:
    """Return the course of a row's short run."""
    now = replace(slow_without_labels(SHORT_COURSES[name], method), **OWN_COURSES.get((name, method), {}))
    return replace(now, steps=2 * now.steps) if (name, depth) in TWICE else now


def methods_for(name: str, full: bool) -> Mapping[str, Method]:
    """Return the methods of an entry's rows, by name."""
    return (FULL_METHODS if full else SHORT_METHODS)[name]


def _run(name: str, depth: int, method: str, seed: int, budget: Budget, title: str) -> Figures:
    setting = Setting(
        layers=layers_for(name, depth, budget.full),
        method=methods_for(name, budget.full)[method],
        course=course(budget.full, short_course(name, depth, method)),
        seed=seed,
    )
    return train(setting, data_for(name, budget.data), budget, title)


def _trials(name: str, full: bool) -> list[Trial]:
    methods = ("backprop", "cDNI") if name == "mnist-deep" else tuple(METHODS)
    return [
        Trial(f"{depth} layers, {method}, seed {seed}", partial(_run, name, depth, method, seed))
        for method in methods
        for depth in PAPER[name]
        for seed in _seeds(name, method, full)
    ]


def _seeds(name: str, method: str, full: bool) -> Sequence[int]:
    """Return three seeds where a goal compares two of them, else one."""
    of_goal = name.startswith("mnist-") and not name.endswith("cnn") and method in ("backprop", "cDNI")
    return range(3 if full or of_goal else 1)


def _table(name: str, results: Mapping[str, Figures]) -> Table:
    rows = [
        (
            f"{depth} layers",
            [f"{depth} layers, {method}|{paper}" for method, paper in zip(METHODS, papers.split(), strict=True)],
        )
        for depth, papers in PAPER[name].items()
    ]
    return rows_table(["test error, %", *METHODS], rows, results, "test_error")


def _entry(name: str, title: str) -> Entry:
    return Entry(title, partial(_trials, name), partial(_table, name), draw_curves)


ENTRIES = {
    name: _entry(name, title)
    for name, title in {
        "mnist-fcn": "MNIST, linear layers, every one decoupled",
        "mnist-deep": "MNIST, 21 linear layers, every one decoupled",
        "mnist-cnn": "MNIST, convolutions, every layer decoupled",
        "cifar-fcn": "CIFAR-10, linear layers, every one decoupled",
        "cifar-cnn": "CIFAR-10, convolutions, every layer decoupled",
    }.items()
}
