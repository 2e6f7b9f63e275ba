"""A character model of stacked LSTMs on a text file of yours: a stage for each, unlocked in depth and in time.

stepahead train examples/recurrent_chars.py --set options.file=book.txt

Each batch is a window of as many streams of the text as there are rows, and goes on where the last one ended; the state
stays with the layers. At a window's end truncated backprop takes the gradient to be zero; here it is guessed.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from stepahead.launch import Job, read_text, streams
from stepahead.pipeline import Recurrent, accuracy, synthetic


class Start(nn.Module):
    """Characters as vectors, and the first core."""

    def __init__(self, letters: int, width: int, core: Recurrent) -> None:
        super().__init__()
        self.table = nn.Embedding(letters, width)
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.core(self.table(x))
        return out


class End(nn.Module):
    """The last core, and a score for each character."""

    def __init__(self, letters: int, width: int, core: Recurrent) -> None:
        super().__init__()
        self.core = core
        self.out = nn.Linear(width, letters)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.out(self.core(h))
        return out


def core(width: int, learning_rate: float, windows: int) -> Recurrent:
    guess = synthetic("mlp", hidden=width, optimizer=partial(Adam, lr=learning_rate))
    return Recurrent(nn.LSTM(width, width, batch_first=True), guess, windows=windows)


def loss(output: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), label.flatten())


def bits(output: Tensor, label: Tensor) -> Tensor:
    """Return how many bits it takes to tell the next character, in the mean."""
    return loss(output, label) / math.log(2)


def job(
    file: str, width: int = 128, layers: int = 4, window: int = 16, batch: int = 32, epochs: int = 5, lr: float = 2e-3
) -> Job:
    if layers < 2:
        raise ValueError(f"layers is {layers}; the first and the last are two")
    text = read_text(Path(file))
    letters, train = len(text.alphabet), list(streams(text.train, batch, window))
    test = list(streams(text.test, batch, window))
    cores = [partial(core, width, lr, len(train)) for _ in range(layers)]  # a sequence is a pass over the text
    return Job(
        name="recurrent-chars",
        model=[
            lambda: Start(letters, width, cores[0]()),
            *cores[1:-1],
            lambda: End(letters, width, cores[-1]()),
        ],
        data=train,
        test=test,
        loss=loss,
        metrics={"accuracy": accuracy, "bits": bits},
        optimizer=partial(Adam, lr=lr),
        classes=letters,
        stages=layers,
        epochs=epochs,
        evaluate_every=len(train),
    )
