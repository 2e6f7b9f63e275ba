"""Two clocks: digits come one by one; a fast network counts over the last T of them, a slow one over the last T x T.

    steps        1 2 3 4 | 5 6 7 8 | ..
    fast           odd?  |   odd?  |          how many of the last T digits were odd
    message            \\_        \\_
    slow                 threes?   threes?     how many of the last T x T were threes, from up to T messages

A batch is a window of T steps, a sequence T of them. Both networks are asked at the end of each window, which for the
slow one is one step. The fast one has a loss of its own; what it says goes along, to be judged beside the slow one's.
A label is both counts as one number: predictors can see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepahead.pipeline import Graph, Node, Recurrent, SignalRecipe

__all__ = [
    "clock_graph",
    "count_windows",
    "fast_accuracy",
    "fast_loss",
    "labels_of",
    "last_loss",
    "slow_accuracy",
    "slow_loss",
]

THREE = 3
Counts = tuple[Tensor, Tensor]
"""Scores of the slow count and of the fast one: what the graph puts out."""


class Eye(nn.Module):
    """Looks at each digit of a window by itself."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(pixels, width), nn.Linear(width, width)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width), nn.BatchNorm1d(width)])

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(0, 1).flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = norm(layer(h)).relu()
        return h.view(*x.shape[:2], -1)


class Last(nn.Module):
    """A linear map of the last of a window's outputs."""

    def __init__(self, width: int, outputs: int, *, as_step: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.as_step = as_step

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.linear(h[:, -1])
        return out.unsqueeze(1) if self.as_step else out


class Told(nn.Module):
    """What is said, without a way back."""

    def forward(self, h: Tensor) -> Tensor:
        return h.detach()


def clock_graph(
    pixels: int, ticks: int, width: int, fast: SignalRecipe | None = None, slow: SignalRecipe | None = None
) -> Graph:
    """Return both networks; cut it before "slow".

    Args:
        pixels: Of a digit.
        ticks: T.
        width: Of layers, states and the message.
        fast, slow: Guess what comes after a window of the fast network, and after a step of the slow one.
    """

    def core(guess: SignalRecipe | None) -> Recurrent:
        return Recurrent(nn.LSTM(width, width, batch_first=True), guess, windows=ticks)

    return Graph(
        {
            "eye": Node(partial(Eye, pixels, width), "input"),
            "fast": Node(partial(core, fast), "eye"),
            "odd": Node(partial(Last, width, ticks + 1), "fast", loss=partial(fast_loss, ticks)),
            "message": Node(partial(Last, width, width, as_step=True), "fast"),
            "told": Node(Told, "odd"),
            "slow": Node(partial(core, slow), "message"),
            "threes": Node(partial(Last, width, ticks * ticks + 1), "slow"),
        },
        outputs=("threes", "told"),
    )


def labels_of(ticks: int) -> int:
    """Return how many labels there are."""
    return (ticks + 1) * (ticks * ticks + 1)


def fast_loss(ticks: int, odd: Tensor, label: Tensor) -> Tensor:
    """Return how wrong the fast network's count is."""
    return F.cross_entropy(odd, _odd(ticks, label))


def slow_loss(ticks: int, threes: Tensor, label: Tensor) -> Tensor:
    """Return how wrong the slow network's count is."""
    return F.cross_entropy(threes, _threes(ticks, label))


def last_loss(ticks: int, counts: Counts, label: Tensor) -> Tensor:
    """Return the loss at the graph's end: that of the slow network, for the fast one has its own."""
    return slow_loss(ticks, counts[0], label)


def fast_accuracy(ticks: int, counts: Counts, label: Tensor) -> Tensor:
    """Return the share of windows whose odd digits were counted right."""
    return (counts[1].argmax(dim=1) == _odd(ticks, label)).float().mean()


def slow_accuracy(ticks: int, counts: Counts, label: Tensor) -> Tensor:
    """Return the share of windows after which the threes were counted right."""
    return (counts[0].argmax(dim=1) == _threes(ticks, label)).float().mean()


def count_windows(
    data: tuple[Tensor, Tensor], ticks: int, batch: int, sequences: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield windows of random digits with their label, T of them to a sequence."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    for _ in range(sequences):
        picked = torch.randint(len(images), (batch, ticks * ticks), generator=generator)
        digits = labels[picked]
        for last in range(ticks, ticks * ticks + 1, ticks):
            odd = (digits[:, last - ticks : last] % 2).sum(dim=1)
            threes = (digits[:, :last] == THREE).sum(dim=1)
            yield images[picked[:, last - ticks : last]], odd * (ticks * ticks + 1) + threes


def _odd(ticks: int, label: Tensor) -> Tensor:
    return label // (ticks * ticks + 1)


def _threes(ticks: int, label: Tensor) -> Tensor:
    return label % (ticks * ticks + 1)
