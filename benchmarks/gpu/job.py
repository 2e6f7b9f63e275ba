"""The job of the check: a deep MLP on numbers that it makes itself, of any width."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.optim import Adam

from stepahead.launch import Job
from stepahead.pipeline import Batch, synthetic

CLASSES = 10


def job(width: int = 256, depth: int = 8, batch: int = 128, batches: int = 40) -> Job:
    generator = torch.Generator().manual_seed(0)
    made: list[Batch] = []
    for _ in range(batches):
        x = torch.randn(batch, width, generator=generator)
        made.append((x, x[:, :CLASSES].argmax(dim=1)))
    layers = [partial(_hidden, width) for _ in range(depth)]
    return Job(
        name="gpu-check",
        model=[*layers, partial(nn.Linear, width, CLASSES)],
        data=made,
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(Adam, lr=1e-3, fused=True),
        signal=synthetic("low-rank", classes=CLASSES, optimizer=partial(Adam, lr=1e-3, fused=True)),
        classes=CLASSES,
        epochs=1,
    )


def _hidden(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
