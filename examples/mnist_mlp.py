"""An MLP on MNIST, or a set in its format, such as Fashion-MNIST, from a folder with its four idx files.

stepahead train examples/mnist_mlp.py --set options.data=path/to/mnist
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader, TensorDataset

from stepahead.launch import Job, mnist
from stepahead.pipeline import accuracy, synthetic

CLASSES, PIXELS = 10, 28 * 28


def job(data: str, width: int = 256, depth: int = 8, batch: int = 128, epochs: int = 5) -> Job:
    files = mnist(Path(data))
    layers = [nn.Flatten(), hidden_layer(PIXELS, width)]
    layers += [hidden_layer(width, width) for _ in range(depth - 1)]
    return Job(
        name="mnist-mlp",
        model=nn.Sequential(*layers, nn.Linear(width, CLASSES)),
        data=loader(files.train, batch, shuffle=True),
        test=loader(files.test, 1000),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        optimizer=partial(Adam, lr=3e-4, fused=True),
        # predictors learn faster than the layers whose gradients they guess
        signal=synthetic("softmax", classes=CLASSES, every=2, optimizer=partial(Adam, lr=3e-3, fused=True)),
        classes=CLASSES,
        stages=4,
        epochs=epochs,
        evaluate_every=400,
    )


def hidden_layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


def loader(data: tuple[Tensor, Tensor], batch: int, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*data), batch_size=batch, shuffle=shuffle, drop_last=shuffle)
