"""Synthetic gradients: a stage steps on a predictor's guess, and the predictor learns when the gradient comes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import UsageError
from .predictors import Predictor, make_predictor
from .quality import Quality, QualityReading
from .signals import Needs, OptimizerRecipe, ScheduleRecipe, Signal, SignalRecipe, arrived

__all__ = ["Blend", "Synthetic", "blend", "synthetic"]


class Synthetic(Signal):
    """A predictor's guess at once; the gradient that comes later teaches the predictor.

    The predictor works on per-sample gradients: with a loss that is a mean, the batch's own are smaller by the
    number of samples, and would drown in Adam's epsilon.

    Args:
        predictor: The network that guesses.
        optimizer: Makes the predictor's optimizer; it has nothing to do with the group's.
        schedule: Makes a learning rate schedule for it.
        every: Learn on each n-th batch only.
        rows: Learn on this share of the batch's samples only, another part each time.
        loss_is_mean: False for a loss that sums over the samples.
    """

    def __init__(
        self,
        predictor: Predictor,
        optimizer: OptimizerRecipe,
        *,
        schedule: ScheduleRecipe | None = None,
        every: int = 1,
        rows: float = 1.0,
        loss_is_mean: bool = True,
    ) -> None:
        super().__init__()
        if every < 1 or not 0.0 < rows <= 1.0:
            raise UsageError(
                f"a predictor learns on every n-th batch and on a share of its rows: "
                f"every is {every} and must be at least 1, rows is {rows} and must be in (0, 1]"
            )
        self.predictor = predictor
        self.classes = predictor.classes
        self.optimizer = optimizer(predictor.parameters())
        self.schedule = schedule(self.optimizer) if schedule else None
        self.every = every
        self.stride = max(1, round(1 / rows))
        self.loss_is_mean = loss_is_mean
        self._dtype = next(predictor.parameters()).dtype
        self._quality = Quality()

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return (self._guess(h, y) / self._scale(h, y)).to(h.dtype)

    def wants(self, step: int) -> bool:
        return step % self.every == 0

    def learn(self, h: Tensor, y: Tensor | None, delta: Tensor, step: int) -> None:
        sample = slice((step // self.every) % self.stride, None, self.stride)
        if len(h) <= sample.start:  # a last batch so short that this turn finds no row in it
            return
        h_sample, y_sample = h[sample], None if y is None else y[sample]
        guess = self._guess(h_sample, y_sample)
        target = (delta[sample] * self._scale(h, y)).to(guess.dtype)
        error = F.mse_loss(guess, target, reduction="sum") / _samples(h_sample, y_sample)
        torch.autograd.backward(error)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule:
            for _ in range(self.every):  # a schedule counts batches, also those that were not learnt from
                self.schedule.step()
        self._quality.update(guess.detach(), target)

    @property
    def quality(self) -> QualityReading | None:
        return self._quality.read()

    def _guess(self, h: Tensor, y: Tensor | None) -> Tensor:
        guess: Tensor = self.predictor(h.to(self._dtype), y if self.classes else None)
        return guess

    def _scale(self, h: Tensor, y: Tensor | None) -> int:
        return _samples(h, y) if self.loss_is_mean else 1


class Blend(Synthetic):
    """BP(lambda): a mix of the gradient from below and the guess; 1 is backprop, 0 is synthetic alone."""

    needs = Needs.GRADIENT

    def __init__(self, predictor: Predictor, optimizer: OptimizerRecipe, *, share: float, **options: Any) -> None:
        super().__init__(predictor, optimizer, **options)
        if not 0.0 <= share <= 1.0:
            raise UsageError(f"the share of the true gradient is {share}; it must lie between 0 and 1")
        self.share = share

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        return torch.lerp(super().gradient(h, y), arrived(waited), self.share)


def synthetic(
    predictor: str = "auto",
    *,
    optimizer: OptimizerRecipe,
    classes: int | None = None,
    schedule: ScheduleRecipe | None = None,
    every: int = 1,
    rows: float = 1.0,
    loss_is_mean: bool = True,
    kind: Callable[..., Synthetic] = Synthetic,
    **options: Any,
) -> SignalRecipe:
    """Return the recipe of `Synthetic`: cDNI with `classes`, DNI without; `options` go to the predictor."""
    learning: dict[str, Any] = {
        "schedule": schedule,
        "every": every,
        "rows": rows,
        "loss_is_mean": loss_is_mean,
    }

    def make(h: Tensor, y: Tensor | None) -> Signal:
        return kind(make_predictor(predictor, h, classes=classes, **options), optimizer, **learning)

    return make


def blend(share: float, predictor: str = "auto", **options: Any) -> SignalRecipe:
    """Return the recipe of `Blend`, with the options of `synthetic`."""
    return synthetic(predictor, kind=partial(Blend, share=share), **options)


def _samples(h: Tensor, y: Tensor | None) -> int:
    """Return how many samples a loss is the mean of: rows, or places where each has a label of its own."""
    return len(h) if y is None or y.is_floating_point() else y.numel()
