"""Two towers that see a half of each digit, and a head that joins them: a graph of three stages.

stepahead train examples/two_towers.py

Both towers read the raw batch. Each value that the head gets has a predictor of its own; n in the view shows what
crosses between stages.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam

from stepahead.launch import Job, digits, minibatches
from stepahead.pipeline import Batch, Graph, Node, accuracy

CLASSES, SIDE = 10, 8


class Tower(nn.Module):
    """Sees the columns of an image from one to another."""

    def __init__(self, first: int, last: int, width: int) -> None:
        super().__init__()
        self.columns = slice(first, last)
        seen = SIDE * (last - first)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(seen, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.view(-1, SIDE, SIDE)[:, :, self.columns])
        return out


class Head(nn.Module):
    """Joins two towers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, CLASSES))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([left, right], dim=1))
        return out


def job(width: int = 64, batch: int = 64, epochs: int = 20) -> Job:
    data = digits()
    return Job(
        name="two-towers",
        model=Graph(
            {
                "left": Node(partial(Tower, 0, SIDE // 2, width), "input"),
                "right": Node(partial(Tower, SIDE // 2, SIDE, width), "input"),
                "head": Node(partial(Head, width), "left", "right"),
            }
        ),
        data=partial(epoch, data.train, batch),
        test=[data.test],
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        optimizer=partial(Adam, lr=1e-3),
        classes=CLASSES,
        stages=3,
        epochs=epochs,
        evaluate_every=100,
    )


def epoch(data: tuple[Tensor, Tensor], batch: int, number: int) -> list[Batch]:
    return list(minibatches(data, batch, seed=number, epochs=1, whole=True))
