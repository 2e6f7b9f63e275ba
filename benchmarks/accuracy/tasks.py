"""What is trained: a character GPT on a text, fully connected networks on MNIST, a CNN on CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from stepahead.launch import cifar10, minibatches, mnist
from stepahead.launch.job_chars import MATRICES, REST, share_of_rate, windows
from stepahead.launch.job_chars import loss as token_loss
from stepahead.launch.job_chars import model as gpt
from stepahead.launch.job_chars import optimizer as with_muon
from stepahead.pipeline import (
    Batch,
    LossFunction,
    LRScheduleRecipe,
    Metric,
    Model,
    OptimizerRecipe,
    accuracy,
    muon,
    seed_for,
)

__all__ = ["TASKS", "Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its data and how plain backprop trains it best."""

    model: Model
    stages: int
    steps: int
    classes: int
    batches: Callable[[int], Iterator[Batch]]
    """Of a seed."""
    test: Sequence[Batch]
    loss: LossFunction
    optimizer: Callable[[float], OptimizerRecipe]
    """Of a learning rate."""
    rate: float
    lr_schedule: LRScheduleRecipe
    metric: str
    """What is compared: "loss", or "error" in per cent."""
    predictor: str
    predictor_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    evaluate_every: int = 500

    @property
    def metrics(self) -> dict[str, Metric]:
        return {"accuracy": accuracy} if self.metric == "error" else {}

    def judge(self, figures: Mapping[str, float]) -> float:
        """Return the figure that is compared; less is better."""
        return 100 * (1 - figures["accuracy"]) if self.metric == "error" else figures["loss"]


def chars(
    folder: Path, steps: int = 3000, *, matrices: bool = False, stages: int = 4, tables: float | None = None
) -> Task:
    """A GPT of four blocks, with AdamW or Muon, with tables as torch makes them or smaller ones."""
    text = (folder / "text" / "tinyshakespeare.txt").read_text()
    alphabet = sorted(set(text))
    number = {character: index for index, character in enumerate(alphabet)}
    numbers = torch.tensor([number[character] for character in text])
    train, test = numbers.split([len(numbers) * 9 // 10, len(numbers) - len(numbers) * 9 // 10])
    window, batch = 64, 32
    adamw = partial(AdamW, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    model = gpt(len(alphabet), 96, 4, 4, window)
    return Task(
        model=model if tables is None else [partial(_with_tables, tables, model[0]), *model[1:]],
        stages=stages,
        steps=steps,
        classes=len(alphabet),
        batches=partial(_windows, train, window, batch),
        test=list(windows(test, window, 400)),
        loss=token_loss,
        optimizer=with_muon if matrices else lambda rate: partial(adamw, lr=rate),
        rate=1e-3,
        lr_schedule=partial(LambdaLR, lr_lambda=partial(share_of_rate, steps)),
        metric="loss",
        predictor="token",
    )


def mnist_net(depth: int, folder: Path, steps: int = 4000, *, matrices: bool = False) -> Task:
    """Layers of 256 units, one stage each. With Adam, or with Muon for their matrices."""
    data = mnist(folder / "mnist")
    train = data.train[0].flatten(1), data.train[1]
    hidden = [partial(_hidden_layer, 784 if index == 0 else 256) for index in range(depth)]
    return Task(
        model=[*hidden, partial(nn.Linear, 256, 10)],
        stages=depth + 1,
        steps=steps,
        classes=10,
        batches=lambda seed: minibatches(train, 256, seed=seed),
        test=[(data.test[0].flatten(1), data.test[1])],
        loss=nn.CrossEntropyLoss(),
        optimizer=_muon_too if matrices else _adam,
        rate=3e-4,
        lr_schedule=partial(MultiStepLR, milestones=[steps * 60 // 100, steps * 85 // 100], gamma=0.1),
        metric="error",
        predictor="linear",
    )


def cifar_net(folder: Path, steps: int = 4000, *, matrices: bool = False) -> Task:
    """Two convolutions of 32 channels and a classifier, a stage each. With Adam, or Muon for filters and matrix."""
    data = cifar10(folder / "cifar10")
    return Task(
        model=[
            partial(_conv_layer, 3, 32, nn.MaxPool2d(3, 2, 1)),
            partial(_conv_layer, 32, 32, nn.AvgPool2d(3, 2, 1)),
            partial(_classifier, 32 * 8 * 8, 10),
        ],
        stages=3,
        steps=steps,
        classes=10,
        batches=lambda seed: minibatches(data.train, 128, seed=seed),
        test=list(zip(data.test[0].split(1000), data.test[1].split(1000), strict=True)),
        loss=nn.CrossEntropyLoss(),
        optimizer=_muon_too if matrices else _adam,
        rate=1e-3,
        lr_schedule=partial(MultiStepLR, milestones=[steps * 60 // 100, steps * 85 // 100], gamma=0.1),
        metric="error",
        predictor="conv",
    )


TASKS: dict[str, Callable[..., Task]] = {
    "chars": chars,
    "chars-muon": partial(chars, matrices=True),
    "chars8-muon": partial(chars, matrices=True, stages=8),
    "chars-small": partial(chars, tables=0.02),
    "chars-small-muon": partial(chars, matrices=True, tables=0.02),
    "mnist4": partial(mnist_net, 4),
    "mnist8": partial(mnist_net, 8),
    "mnist4-muon": partial(mnist_net, 4, matrices=True),
    "mnist8-muon": partial(mnist_net, 8, matrices=True),
    "cifar": cifar_net,
    "cifar-muon": partial(cifar_net, matrices=True),
}


def _adam(rate: float) -> OptimizerRecipe:
    return partial(Adam, lr=rate, fused=True)


def _muon_too(rate: float) -> OptimizerRecipe:
    return muon(MATRICES * rate, rest=_adam(REST * rate))


def _with_tables(std: float, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a layer, with what its tables of embeddings hold so many times as large."""
    layer = make()
    for module in layer.modules():
        if isinstance(module, nn.Embedding):
            module.weight.data.mul_(std)
    return layer


def _windows(text: Tensor, window: int, batch: int, seed: int) -> Iterator[Batch]:
    """Yield batches of windows that begin anywhere."""
    generator = torch.Generator().manual_seed(seed_for(seed, "windows"))
    while True:
        places = torch.randint(len(text) - window, (batch,), generator=generator)
        rows = places.unsqueeze(1) + torch.arange(window)
        yield text[rows], text[rows + 1]


def _hidden_layer(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 256), nn.BatchNorm1d(256), nn.ReLU())


def _conv_layer(inputs: int, outputs: int, pool: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 5, padding=2), nn.BatchNorm2d(outputs), nn.ReLU(), pool)


def _classifier(inputs: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
