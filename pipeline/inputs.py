"""Synthetic inputs: a stage guesses from the raw batch what will come from above, and runs at once.

With them falls the forward lock: every stage draws the raw batches itself. What comes from above teaches the guess.

    stage k     draws x(t)   guesses h(x(t))   runs and steps on it   ..   hears h(t): learns that this was to guess
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import MessageError, UsageError
from .guessing import row_norm
from .quality import Quality, QualityReading
from .updates import LRScheduleRecipe, OptimizerRecipe, Updater

__all__ = ["InputRecipe", "SyntheticInput", "synthetic_inputs"]


class SyntheticInput:
    """The guess of one stage.

    Args:
        network: Guesses the activation from the raw batch.
        optimizer: Makes its optimizer.
        lr_schedule: Makes a learning rate schedule for it, which counts batches.
    """

    def __init__(
        self, network: nn.Module, optimizer: OptimizerRecipe, lr_schedule: LRScheduleRecipe | None = None
    ) -> None:
        self.network = network
        self.updater = Updater(network.parameters(), optimizer, lr_schedule, owner="a synthetic input")
        self.most_bytes = 0
        """The most that was kept of batches of which something is still to come."""
        self._unheard: dict[int, Tensor] = {}
        self._quality = Quality()

    def expect(self, x: Tensor, step: int) -> None:
        """Remember a batch of which something is to come from above."""
        self._unheard[step] = x
        self.most_bytes = max(self.most_bytes, sum(each.nbytes for each in self._unheard.values()))

    def guess(self, x: Tensor) -> Tensor:
        """Return what will come from above for this batch."""
        with torch.no_grad(), _statistics_kept(self.network):
            guess: Tensor = self.network(x)
        return guess

    def learn(self, h: Tensor, step: int) -> None:
        """Learn what the guess was to be; nothing, if the stage above left this batch out."""
        if step not in self._unheard:
            raise MessageError(f"an activation of step {step} came from above, where none was expected")
        x = self._unheard.pop(step)
        if h.numel():
            guess = self.network(x)
            if guess.shape != h.shape:
                raise MessageError(f"a synthetic input is {list(guess.shape)}, and {list(h.shape)} came from above")
            torch.autograd.backward(F.mse_loss(guess, h, reduction="sum") / len(h))
            if self.updater.step():
                self._quality.update(guess.detach(), h)
            self.updater.clear()
        self.updater.advance()

    @property
    def unheard(self) -> int:
        """Guesses of which it is not known yet what they were to be."""
        return len(self._unheard)

    @property
    def quality(self) -> QualityReading | None:
        return self._quality.read()


InputRecipe = Callable[[Tensor, Tensor], SyntheticInput]
"""Makes a stage's synthetic input from examples of the raw batch and of what comes from above."""


def synthetic_inputs(
    network: Callable[[Tensor, Tensor], nn.Module] | None = None,
    *,
    optimizer: OptimizerRecipe,
    hidden: int | None = None,
    depth: int = 1,
    lr_schedule: LRScheduleRecipe | None = None,
) -> InputRecipe:
    """Return the recipe of `SyntheticInput`.

    `network` makes one from examples of the raw batch and of the activation. Without it the network is of `depth`
    layers (linear, BatchNorm, ReLU) of `hidden` units, as many as the activation has values unless given, and one more.
    """
    if depth < 0 or (hidden is not None and hidden < 1):
        raise UsageError(f"a synthetic input has depth {depth} and hidden {hidden}; at least 0 and 1 are needed")

    def make(x: Tensor, h: Tensor) -> SyntheticInput:
        made = network(x, h) if network else _Flat(x, h, hidden, depth)
        return SyntheticInput(made.to(h.device), optimizer, lr_schedule)

    return make


class _Flat(nn.Module):
    """Hidden layers over all values of a sample; the last layer starts at zero."""

    def __init__(self, x: Tensor, h: Tensor, hidden: int | None, depth: int) -> None:
        super().__init__()
        if not x.is_floating_point():
            raise UsageError(f"a synthetic input of {x.dtype} needs a network of your own, with an embedding")
        self.shape = h.shape[1:]
        outputs = prod(self.shape)
        widths = [x[0].numel()] + [hidden or outputs] * depth
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Linear(before, after, bias=False),
                row_norm("batch", after),
                nn.ReLU(),
            ]
        last = nn.Linear(widths[-1], outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Flatten(), *layers, last)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result.view(len(x), *self.shape)


@contextmanager
def _statistics_kept(network: nn.Module) -> Generator[None]:
    """Leave a network's buffers as they are: each batch runs twice, and is to count once."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
