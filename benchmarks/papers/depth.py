"""One guess in the middle of a deep net, and nets cut into K blocks; what their layers then look like (paper B).

Of each trained net: the distances between the activations of 400 test images, layer by layer, and how like they are to
those of the last hidden layer and of the next one; a linear classifier on each layer; the length of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise, product

import torch
from rich.box import MARKDOWN
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from stepahead.launch import Dataset
from stepahead.pipeline import Group

from .entry import Budget, Entry, Figures, Trial, mean_of, of_seeds, rows_table
from .figures import draw_curves, draw_layers
from .nets import CLASSES, fcn, images
from .training import METHODS, Course, Setting, course, slow_without_labels, train

__all__ = ["ENTRIES"]

DEPTHS, BLOCKS = (3, 5, 10, 20, 50), (2, 3, 5, 10)
BENDS = {"": nn.ReLU, "sigmoid ": nn.Sigmoid}
"""What the key of a trial says of its nonlinearity."""
SIGNALS = ("backprop", "cDNI")
WIDTH, POINTS, FITTED = 64, 400, 4000
SHORT, WHOLE = Course(3000, 1e-3, 128), Course(30_000, 1e-3, 128)


def _run_middle(hidden: int, bend: str, method: str, seed: int, budget: Budget, title: str) -> Figures:
    data, groups = images(budget.data, True), list[Group]()
    setting = Setting(
        layers=fcn(hidden + 1, width=WIDTH, bend=BENDS[bend]),
        method=METHODS[method],
        course=course(budget.full, SHORT, WHOLE),
        seed=seed,
        at=((hidden + 1) // 2,),
    )
    return {**train(setting, data, budget, title, keep=groups), **look_inside(groups, data)}


def _run_blocks(blocks: int, method: str, seed: int, budget: Budget, title: str) -> Figures:
    setting = Setting(
        layers=fcn(10, width=WIDTH),
        method=METHODS[method],
        course=slow_without_labels(course(budget.full, SHORT, WHOLE), method),
        seed=seed,
        blocks=blocks,
    )
    return train(setting, images(budget.data, True), budget, title)


@torch.no_grad()
def look_inside(groups: list[Group], data: Dataset) -> Figures:
    """Return by layer: how like the last hidden layer's its distances are, a linear classifier, its weights."""
    layers = [layer for group in groups for layer in group.layers]
    seen, fitted = _activations(layers, data.test[0][:POINTS]), _activations(layers, data.train[0][:FITTED])
    tested = _activations(layers, data.test[0])
    matrices = [_distances(h) for h in seen[:-1]]
    return {
        "likeness": [_likeness(matrix, matrices[-1]) for matrix in matrices],
        "step": [_likeness(before, after) for before, after in pairwise(matrices)],
        "probe": [
            _probe(h, data.train[1][:FITTED], there, data.test[1])
            for h, there in zip(fitted[:-1], tested[:-1], strict=True)
        ],
        "norms": [round(float(_weight(layer).norm()), 3) for layer in layers],
    }


def _activations(layers: list[nn.Module], x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    for layer in layers:
        layer.eval()
        x = layer(x)
        layer.train()
        found.append(x)
    return found


def _distances(h: Tensor) -> Tensor:
    """Return 1 minus the correlation of each pair of images' activations."""
    correlations = torch.corrcoef(h).nan_to_num(0.0)  # an image that no unit answers to is like no other
    above = torch.ones_like(correlations, dtype=torch.bool).triu(1)
    return 1 - correlations[above]


def _likeness(one: Tensor, other: Tensor) -> float:
    """Return the correlation of two matrices of distances."""
    return round(float(torch.corrcoef(torch.stack([one, other]))[0, 1]), 3)


def _probe(h: Tensor, y: Tensor, there: Tensor, truth: Tensor) -> float:
    """Return the test error of a linear classifier fitted by least squares, in percent."""
    mean, scale = h.mean(dim=0), h.std(dim=0) + 1e-3
    given = torch.cat([(h - mean) / scale, torch.ones(len(h), 1)], dim=1)
    target = F.one_hot(y, CLASSES).float()
    ridge = 1e-2 * len(h) * torch.eye(given.shape[1])
    weight = torch.linalg.solve(given.T @ given + ridge, given.T @ target)
    said = torch.cat([(there - mean) / scale, torch.ones(len(there), 1)], dim=1) @ weight
    return round(100 * float((said.argmax(dim=1) != truth).float().mean()), 2)


def _weight(layer: nn.Module) -> Tensor:
    return next(parameter for parameter in layer.parameters() if parameter.dim() == 2)


def _middle_trials(full: bool) -> list[Trial]:
    return [
        Trial(f"{hidden} {bend}hidden, {method}, seed {seed}", partial(_run_middle, hidden, bend, method, seed))
        for hidden, bend, method in product(DEPTHS, BENDS, SIGNALS)
        for seed in range(3 if full else 1)
    ]


def _blocks_trials(full: bool) -> list[Trial]:
    cuts = [(1, "backprop"), *((blocks, method) for blocks in BLOCKS for method in ("cDNI", "DNI"))]
    return [
        Trial(f"{blocks} blocks, {method}, seed {seed}", partial(_run_blocks, blocks, method, seed))
        for blocks, method in cuts
        for seed in range(3 if full else 1)
    ]


def _middle_table(results: Mapping[str, Figures]) -> Table:
    heads = (
        "hidden layers",
        "signal",
        "test error, %",
        "error at 1/4",
        "like the last",
        "like the next",
        "probes",
        "norms",
    )
    drawn = Table(*heads, box=MARKDOWN)
    for bend, hidden, method in product(BENDS, DEPTHS, SIGNALS):
        key = f"{hidden} {bend}hidden, {method}"
        line = results.get(f"{key}, seed 0")
        if line is not None:
            early = line["curve"][len(line["curve"]) // 4 - 1][1]
            errors = mean_of([each["test_error"] for each in of_seeds(results, key)])
            shown = [_ends(line[name]) for name in ("likeness", "step", "probe", "norms")]
            drawn.add_row(f"{hidden} {bend}".strip(), method, errors, f"{early:.2f}", *shown)
    return drawn


def _ends(values: list[float]) -> str:
    """Return the first, the one at each third, and the last of a list of numbers."""
    picks = [values[index * (len(values) - 1) // 3] for index in range(4)] if len(values) > 3 else values
    return " ".join(f"{value:g}" for value in picks)


def _blocks_table(results: Mapping[str, Figures]) -> Table:
    rows = [
        (f"{blocks} blocks", [f"{blocks} blocks, {method}" for method in ("backprop", "cDNI", "DNI")])
        for blocks in (1, *BLOCKS)
    ]
    return rows_table(["test error, %", "backprop", "cDNI", "DNI"], rows, results, "test_error")


ENTRIES = {
    "middle": Entry("MNIST, one guess in the middle of a deep net", _middle_trials, _middle_table, draw_layers),
    "blocks": Entry("MNIST, 10 layers in K blocks", _blocks_trials, _blocks_table, draw_curves),
}
