"""A CNN with BatchNorm on CIFAR-10, from a folder with the binary files, data_batch_1.bin to 5 and test_batch.bin.

stepahead train examples/cifar_cnn.py --set options.data=path/to/cifar-10-batches-bin
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

from stepahead.launch import Job, cifar10, minibatches
from stepahead.pipeline import Batch, accuracy, synthetic

CLASSES = 10


def job(data: str, width: int = 32, batch: int = 128, epochs: int = 10) -> Job:
    files = cifar10(Path(data))
    samples, labels = files.test
    return Job(
        name="cifar-cnn",
        model=model(width),
        data=partial(epoch, files.train, batch),
        test=list(zip(samples.split(500), labels.split(500), strict=True)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        optimizer=partial(Adam, lr=5e-4, fused=True),
        signal=synthetic(
            "conv", classes=CLASSES, depth=0, kernel=3, every=2, optimizer=partial(Adam, lr=3e-3, fused=True)
        ),
        classes=CLASSES,
        stages=2,
        epochs=epochs,
        evaluate_every=400,
    )


def model(width: int) -> nn.Sequential:
    """Three pairs of convolutions, each on an image of half the size; an `nn.Sequential` can be cut between any two."""
    pairs: list[nn.Module] = []
    for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        pairs += [convolution(inputs, outputs), convolution(outputs, outputs), nn.MaxPool2d(2)]
    return nn.Sequential(*pairs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, CLASSES))


def convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def epoch(data: tuple[Tensor, Tensor], batch: int, number: int) -> Iterator[Batch]:
    """Yield an epoch's batches, each with half of its images mirrored; the run seeds torch for every epoch."""
    for images, labels in minibatches(data, batch, seed=number, epochs=1):
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        yield torch.where(mirrored, images.flip(3), images), labels
