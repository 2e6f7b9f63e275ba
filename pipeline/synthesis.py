"""Synthetic gradients: a stage steps on a predictor's guess, and the predictor learns when the gradient comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import UsageError
from .guessing import Predictor
from .labels import samples_of
from .predictors import PredictorRecipe, make_predictor
from .quality import Quality, QualityReading
from .signals import Asking, Needs, Signal, SignalRecipe, arrived
from .updates import LRScheduleRecipe, OptimizerRecipe, Updater

__all__ = ["Blend", "Synthetic", "blend", "synthetic"]


class Synthetic(Signal):
    """A predictor's guess at once; the gradient that comes later teaches the predictor.

    The predictor works on per-sample gradients: with a loss that is a mean, the batch's own are smaller by the
    number of samples, and would drown in Adam's epsilon.

    Args:
        predictor: The network that guesses.
        optimizer: Makes the predictor's optimizer; it has nothing to do with the group's.
        lr_schedule: Makes a learning rate schedule for it, which counts batches.
        every: Learn on each n-th batch only.
        rows: Learn on this share of the batch's samples only, another part each time: 1, 1/2, 1/3 ..
        loss_is_mean: False for a loss that sums over the samples.
        propagates: Whether the group is to make itself predictable: what the predictor missed flows into it too, when
            that is known (SG + prop).
    """

    def __init__(
        self,
        predictor: Predictor,
        optimizer: OptimizerRecipe,
        *,
        lr_schedule: LRScheduleRecipe | None = None,
        every: int = 1,
        rows: float = 1.0,
        loss_is_mean: bool = True,
        propagates: bool = False,
    ) -> None:
        super().__init__()
        if every < 1:
            raise UsageError(f"a predictor learns on each n-th batch: every is {every} and must be at least 1")
        if not 0.0 < rows <= 1.0 or abs(1 / rows - round(1 / rows)) > 0.05:
            raise UsageError(f"a predictor learns on a share of the rows: rows is {rows} and must be 1, 1/2, 1/3 ..")
        self.predictor = predictor
        self.classes = predictor.classes
        self.updater = Updater(predictor.parameters(), optimizer, lr_schedule)
        self.every = every
        self.parts = round(1 / rows)
        self.loss_is_mean = loss_is_mean
        self.propagates = propagates
        self.draws = any(isinstance(module, nn.Dropout) for module in predictor.modules())
        self._dtype = next(predictor.parameters()).dtype
        self._quality = Quality()

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        samples = samples_of(h, y, self.classes)
        with torch.no_grad():
            return (self._guess(h, y) / self._scale(samples)).to(h.dtype)

    def wants(self, step: int) -> bool:
        return step % self.every == 0

    @property
    def pulls(self) -> bool:
        return self.propagates

    def learn(self, h: Tensor, y: Tensor | None, delta: Tensor, step: int, *more: Tensor) -> Tensor | None:
        part = slice((step // self.every) % self.parts, None, self.parts)
        if len(h) <= part.start:  # a last batch so short that this turn finds no row in it
            return None
        samples = samples_of(h, y, self.classes)
        h_part, y_part = h[part].detach().requires_grad_(self.propagates), None if y is None else y[part]
        guess = self._guess(h_part, y_part)
        target = (delta[part] * self._scale(samples)).to(guess.dtype)
        counted = samples * len(h_part) // len(h) if isinstance(samples, int) else samples_of(h_part, y_part, None)
        error = F.mse_loss(guess, target, reduction="sum") / counted
        torch.autograd.backward(error)
        if self.updater.step():
            self._quality.update(guess.detach(), target)
        self.updater.clear()
        if h_part.grad is None:
            return None
        pull = torch.zeros_like(h)
        pull[part] = h_part.grad
        return pull

    def end_step(self) -> None:
        self.updater.advance()

    @property
    def quality(self) -> QualityReading | None:
        return self._quality.read()

    def _guess(self, h: Tensor, y: Tensor | None) -> Tensor:
        guess: Tensor = self.predictor(h.to(self._dtype), y if self.classes else None)
        return guess

    def _scale(self, samples: Tensor | int) -> Tensor | int:
        """Return how many times as large a sample's own gradient is as its share of the batch's."""
        return samples if self.loss_is_mean else 1


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
    predictor: PredictorRecipe = "auto",
    *,
    optimizer: OptimizerRecipe,
    classes: int | None = None,
    lr_schedule: LRScheduleRecipe | None = None,
    every: int = 1,
    rows: float = 1.0,
    loss_is_mean: bool = True,
    propagates: bool = False,
    **options: Any,
) -> SignalRecipe:
    """Return the recipe of `Synthetic`: cDNI with `classes`, DNI without.

    `predictor` is a kind of predictor, whose options follow, or a function that makes one from an example of the
    activation.
    """

    shape = {"classes": classes, **options}
    learning = {
        "optimizer": optimizer,
        "lr_schedule": lr_schedule,
        "every": every,
        "rows": rows,
        "loss_is_mean": loss_is_mean,
        "propagates": propagates,
    }
    return Asking(partial(_make, Synthetic, predictor, shape, learning), every=every)


def blend(
    share: float,
    predictor: PredictorRecipe = "auto",
    *,
    optimizer: OptimizerRecipe,
    classes: int | None = None,
    lr_schedule: LRScheduleRecipe | None = None,
    loss_is_mean: bool = True,
    **options: Any,
) -> SignalRecipe:
    """Return the recipe of `Blend`; the rest is as for `synthetic`."""

    shape = {"classes": classes, **options}
    learning = {"optimizer": optimizer, "share": share, "lr_schedule": lr_schedule, "loss_is_mean": loss_is_mean}
    return partial(_make, Blend, predictor, shape, learning)


def _make(
    kind: Callable[..., Signal],
    predictor: PredictorRecipe,
    shape: Mapping[str, Any],
    learning: Mapping[str, Any],
    h: Tensor,
    y: Tensor | None,
) -> Signal:
    """Return a signal with a predictor for such activations. Recipes are partials of this, so they can be pickled."""
    return kind(make_predictor(predictor, h, **shape), **learning)
