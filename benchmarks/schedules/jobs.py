"""The jobs of the benchmark: MLPs of any width on numbers made here, a CNN on CIFAR-10's files or on noise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from stepahead.launch import Job, cifar10, minibatches
from stepahead.launch.job_chars import job as chars
from stepahead.pipeline import Batch, muon, synthetic

CLASSES = 10
BATCHES = 32
IMAGE_PREDICTORS: dict[str, dict[str, Any]] = {
    "cheap": {"predictor": "conv", "hidden": 8, "kernel": 1, "every": 4, "rows": 1 / 4},
    "cheaper": {"predictor": "conv", "hidden": 4, "kernel": 1, "every": 16, "rows": 1 / 4},
    "whole": {"predictor": "whole", "hidden": 16},
}


def mlp(width: int = 512, depth: int = 8, batch: int = 256, stages: int = 2, every: int = 8) -> Job:
    """ReLU layers, with a cheap predictor: a softmax's error, learning on some batches from a part of their rows."""
    generator = torch.Generator().manual_seed(0)
    data: list[Batch] = []
    for _ in range(BATCHES):
        x = torch.randn(batch, width, generator=generator)
        data.append((x, x[:, :CLASSES].argmax(dim=1)))
    layers = [partial(_hidden, width, width) for _ in range(depth - 1)]
    return Job(
        name=f"mlp-{width}",
        model=[*layers, partial(nn.Linear, width, CLASSES)],
        data=data,
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(SGD, lr=0.02, momentum=0.9, fused=True),
        signal=synthetic(
            "softmax", classes=CLASSES, every=every, rows=1 / 4, optimizer=partial(Adam, lr=1e-3, fused=True)
        ),
        classes=CLASSES,
        stages=stages,
        epochs=1,
    )


def gpt(every: int = 4, parts: int = 4, rate: float = 3e-3, stages: int = 2) -> Job:
    """The job `chars`, with a cheap predictor: a softmax's error, learning on some batches from a part of the rows."""
    job = chars()
    signal = synthetic(
        "softmax",
        classes=job.classes,
        every=every,
        rows=1 / parts,
        optimizer=partial(AdamW, lr=rate, weight_decay=0.0, fused=True),
        lr_schedule=job.lr_schedule,
    )
    return replace(job, name="gpt", signal=signal, stages=stages)


def cnn(
    data: str = "",
    channels: int = 32,
    batch: int = 128,
    optimizer: str = "adam",
    muon_rate: float = 1e-2,
    predictor: str = "cheap",
) -> Job:
    """Convolutions, in two stages of about equal cost; on noise if no folder with CIFAR-10's binaries is given.

    With `optimizer="muon"` filters and matrices have the optimizer for gradients that come late, at `muon_rate`. The
    cheap predictor is a small convolution that learns from some rows of some batches, the cheaper one is smaller and
    learns from fewer, and "whole" learns from all of them.
    """
    adam = partial(Adam, lr=1e-3, fused=True)
    if data:
        files = cifar10(Path(data))
        batches = partial(_epoch, files.train, batch)
    else:
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(batch, 3, 32, 32, generator=generator) for _ in range(8)]
        batches = [(x, torch.randint(CLASSES, (batch,), generator=generator)) for x in made]  # type: ignore[assignment]
    half = partial(_conv, channels, channels)
    return Job(
        name="cnn",
        model=[
            partial(_conv, 3, channels),
            partial(nn.MaxPool2d, 3, 2, 1),
            half,
            half,
            partial(nn.AvgPool2d, 3, 2, 1),
            partial(_classifier, channels * 8 * 8),
        ],
        data=batches,
        loss=nn.CrossEntropyLoss(),
        optimizer=muon(muon_rate, rest=adam) if optimizer == "muon" else adam,
        signal=synthetic(optimizer=adam, classes=CLASSES, **IMAGE_PREDICTORS[predictor]),
        classes=CLASSES,
        stages=2,
        epochs=1,
    )


def _epoch(data: tuple[torch.Tensor, torch.Tensor], batch: int, number: int):  # type: ignore[no-untyped-def]
    return minibatches(data, batch, seed=number, epochs=1, whole=True)


def _hidden(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 5, padding=2), nn.GroupNorm(4, outputs), nn.ReLU())


def _classifier(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, CLASSES))
