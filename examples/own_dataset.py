"""A dataset, a model and a loader of your own, as you would have them for any trainer: a job only names them.

stepahead train examples/own_dataset.py --set options.epochs=10
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset

from stepahead.launch import Job
from stepahead.pipeline import accuracy


class Spirals(Dataset[tuple[Tensor, Tensor]]):
    """Points on three spirals that turn around each other, and which of them each is on."""

    def __init__(self, points: int, *, noise: float = 0.02, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spiral = torch.randint(3, (points,), generator=generator)
        radius = torch.rand(points, generator=generator)
        angle = 2 * torch.pi * (radius + self.spiral / 3)
        exact = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
        self.place = exact + noise * torch.randn(points, 2, generator=generator)

    def __len__(self) -> int:
        return len(self.spiral)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.place[index], self.spiral[index]


def job(points: int = 6000, width: int = 64, epochs: int = 20) -> Job:
    layers: list[nn.Module] = [nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return Job(
        name="spirals",
        model=nn.Sequential(*layers, nn.Linear(width, 3)),
        data=DataLoader(Spirals(points), batch_size=64, shuffle=True),
        test=DataLoader(Spirals(1000, seed=1), batch_size=500),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        optimizer=partial(Adam, lr=1e-3),
        classes=3,  # the predictors of synthetic gradients, which a job gets if it says nothing else, see the label
        stages=2,
        epochs=epochs,
        evaluate_every=200,
    )
