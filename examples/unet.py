"""A small U-Net that takes the noise out of digits: skips go from stage to stage beside what is deeper.

stepahead train examples/unet.py --cut down,up

The loss is a regression, so predictors see no label. Where several values cross a cut, each has one that suits it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from stepahead.launch import Job, digits, minibatches
from stepahead.pipeline import Batch, Graph, Node, Truth, synthetic

SIDE = 8


class Up(nn.Module):
    """Makes the deep image as large as the one that was skipped to it, and joins them."""

    def __init__(self, deep: int, skipped: int, channels: int) -> None:
        super().__init__()
        self.layers = convolution(deep + skipped, channels)

    def forward(self, deep: Tensor, skipped: Tensor) -> Tensor:
        large = F.interpolate(deep, size=skipped.shape[2:])
        out: Tensor = self.layers(torch.cat([large, skipped], dim=1))
        return out


def convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def down(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2), *convolution(inputs, outputs).children())


def job(channels: int = 16, noise: float = 0.4, batch: int = 64, epochs: int = 20) -> Job:
    data = digits()
    return Job(
        name="unet",
        model=Graph(
            {
                "enter": Node(partial(convolution, 1, channels), "input"),
                "down": Node(partial(down, channels, 2 * channels), "enter"),
                "deep": Node(partial(down, 2 * channels, 2 * channels), "down"),
                "up": Node(partial(Up, 2 * channels, 2 * channels, 2 * channels), "deep", "down"),
                "out": Node(partial(Up, 2 * channels, channels, channels), "up", "enter"),
                "image": Node(partial(nn.Conv2d, channels, 1, 1), "out"),
            }
        ),
        data=partial(epoch, data.train, noise, batch),
        test=[noisy(data.test[0], noise, 0)],
        loss=nn.MSELoss(),
        optimizer=partial(Adam, lr=1e-3),
        # small, and learning on each second batch: a predictor should cost less than the layers above it
        signal=synthetic("conv", hidden=8, kernel=3, every=2, optimizer=partial(Adam, lr=1e-3)),
        truth=Truth(use="true-up", every=4),
        stages=3,
        epochs=epochs,
        evaluate_every=100,
    )


def epoch(data: tuple[Tensor, Tensor], noise: float, batch: int, number: int) -> list[Batch]:
    batches = minibatches(data, batch, seed=number, epochs=1, whole=True)
    return [noisy(images, noise, seed) for seed, (images, _) in enumerate(batches, number << 20)]


def noisy(images: Tensor, noise: float, seed: int) -> Batch:
    """Return images with noise, and what they were."""
    clean = images.view(-1, 1, SIDE, SIDE)
    generator = torch.Generator().manual_seed(seed + 1)
    return clean + noise * torch.randn(clean.shape, generator=generator), clean
