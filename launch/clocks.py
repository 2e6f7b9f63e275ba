"""Two clocks: digits come one by one; a fast network counts over the last T of them, a slow one over the last T x T.

    steps        1 2 3 4 | 5 6 7 8 | ..
    fast           odd?  |   odd?  |          how many of the last T digits were odd
    message            \\_        \\_
    slow                 .         .  threes?  how many of the last T x T were threes, from T messages

A batch is a window of T steps. The fast network has a loss of its own in each; the slow one is asked at the end of T
windows alone, and takes a window's message as one step. What the fast one says goes along, to be judged beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepahead.pipeline import Graph, Node, Recurrent, SignalRecipe

__all__ = ["clock_graph", "count_windows", "fast_accuracy", "fast_loss", "slow_accuracy", "slow_loss"]

THREE, NOT_ASKED = 3, -100
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
            "odd": Node(partial(Last, width, ticks + 1), "fast", loss=fast_loss),
            "message": Node(partial(Last, width, width, as_step=True), "fast"),
            "told": Node(Told, "odd"),
            "slow": Node(partial(core, slow), "message"),
            "threes": Node(partial(Last, width, ticks * ticks + 1), "slow"),
        },
        outputs=("threes", "told"),
    )


def fast_loss(odd: Tensor, label: Tensor) -> Tensor:
    """Return how wrong the fast network's count is."""
    return F.cross_entropy(odd, label[:, 0])


def slow_loss(counts: Counts, label: Tensor) -> Tensor:
    """Return how wrong the slow network's count is, 0 where it is not asked."""
    asked = F.cross_entropy(counts[0], label[:, 1], ignore_index=NOT_ASKED, reduction="sum")
    return asked / (label[:, 1] != NOT_ASKED).sum().clamp(min=1)


def fast_accuracy(counts: Counts, label: Tensor) -> Tensor:
    """Return the share of windows whose odd digits were counted right."""
    return (counts[1].argmax(dim=1) == label[:, 0]).float().mean()


def slow_accuracy(ticks: int, counts: Counts, label: Tensor) -> Tensor:
    """Return what the share of sequences whose threes were counted right is the mean of, over their windows."""
    return ticks * (counts[0].argmax(dim=1) == label[:, 1]).float().mean()


def count_windows(
    data: tuple[Tensor, Tensor], ticks: int, batch: int, sequences: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield windows of random digits with both counts: T windows to a sequence, the second count with the last."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    for _ in range(sequences):
        picked = torch.randint(len(images), (batch, ticks * ticks), generator=generator)
        digits = labels[picked]
        threes = (digits == THREE).sum(dim=1)
        for window in range(ticks):
            part = slice(window * ticks, (window + 1) * ticks)
            odd = (digits[:, part] % 2).sum(dim=1)
            asked = threes if window == ticks - 1 else torch.full_like(threes, NOT_ASKED)
            yield images[picked[:, part]], torch.stack([odd, asked], dim=1)
