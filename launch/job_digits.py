"""The job `digits`: a deep residual network on scikit-learn's handwritten digits, made to be cut anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from stepahead.pipeline import Batch, Truth, UsageError, accuracy, seed_for, synthetic

from .datasets import Dataset, digits, minibatches
from .job import Job

__all__ = ["job"]

CLASSES, PIXELS = 10, 64
NOISE = 0.2
LEAST_RATE = 0.05


def job(width: int = 128, batch: int = 720, blocks: int = 36, steps: int = 800) -> Job:
    """Return the job.

    Args:
        width: Features of the residual blocks.
        batch: Samples in a batch; at 720 an epoch has two.
        blocks: Residual blocks, each a layer to cut behind.
        steps: Batches to train on.
    """
    for name, value, least in (("width", width, 1), ("batch", batch, 2), ("blocks", blocks, 2), ("steps", steps, 1)):
        if value < least:
            raise UsageError(f"the job's {name} is {value}; it must be at least {least}")
    return Job(
        name="digits",
        model=model(width, blocks),
        data=partial(epoch, batch, int(torch.randint(2**31, ()))),  # drawn: the order follows the run's seed
        test=partial(test, batch),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        optimizer=partial(SGD, lr=6e-3, momentum=0.9, fused=True),
        lr_schedule=partial(LambdaLR, lr_lambda=partial(share_of_rate, steps)),
        signal=synthetic(
            "softmax",
            classes=CLASSES,
            every=2,
            rows=1 / 4,
            optimizer=partial(Adam, lr=6e-3, fused=True),
        ),
        truth=Truth(use="true-up"),
        classes=CLASSES,
        stages=4,
        steps=steps,
        evaluate_every=max(1, steps // 8),
    )


class Block(nn.Module):
    """Adds what one linear map makes of its input.

    The norm comes last, and is over the batch. What crosses a cut then has no part that all samples share: else a guess
    and the features that it moves can drive each other along such a part, until samples can no longer be told apart.
    One weight a block, and no bias: the optimizer's step stays cheap.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.norm(h + self.linear(h.relu()))
        return out


def model(width: int, blocks: int) -> list[Callable[[], nn.Module]]:
    """Return functions that make the layers: each worker calls only its own.

    What begins and what ends the network shares a layer with a block, so that all layers cost about the same.
    """
    return [partial(first, width), *[partial(Block, width)] * (blocks - 2), partial(last, width)]


def first(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(PIXELS, width), Block(width))


def last(width: int) -> nn.Module:
    return nn.Sequential(Block(width), nn.Linear(width, CLASSES))


def share_of_rate(steps: int, step: int) -> float:
    """Return the learning rate as a share of the first: half a cosine, down to a twentieth."""
    return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def epoch(batch: int, seed: int, number: int) -> Iterator[Batch]:
    """Yield an epoch's batches, with noise on the pixels: 1,438 images would soon be known by heart."""
    generator = torch.Generator().manual_seed(seed_for(seed, "noise", number))
    for images, labels in minibatches(loaded().train, batch, seed=seed + number, epochs=1, whole=True):
        yield images + NOISE * torch.randn(images.shape, generator=generator), labels


def test(batch: int, number: int) -> Iterator[Batch]:
    samples, labels = loaded().test
    return zip(samples.split(batch), labels.split(batch), strict=True)


@cache
def loaded() -> Dataset:
    """Return the data, which only the process that feeds the pipeline needs."""
    return digits()
