"""Critics: a stage steps on the slope of a learnt loss of its own, which learns what the loss came to below.

    [stage k] -- h, label --> [stage k+1] .. [loss]
        value(h, label)  <---- values of the samples: the loss itself, or what the critic below takes it for

What comes back is a number for each sample; nobody waits for it. A Sobolev critic gets the gradient too, and learns
that its slope be that. A local critic is a classifier, its value the loss of what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .answers import Answer
from .errors import UsageError
from .guessing import LabelTable, row_norm
from .labels import check_label
from .probes import make_head
from .quality import Quality, QualityReading
from .signals import Asking, LossFunction, Signal, SignalRecipe, losses_of
from .updates import LRScheduleRecipe, OptimizerRecipe, Updater

__all__ = ["Critic", "Sobolev", "critic", "local_critic", "sobolev"]


class Critic(Signal):
    """The slope of a learnt value; it learns from the values that come.

    Args:
        value: A network that returns a number for each sample, from the activation and the label.
        optimizer: Makes its optimizer.
        classes: Labels must be below this.
    """

    answer: ClassVar[Answer] = Answer.VALUES

    def __init__(
        self,
        value: nn.Module,
        optimizer: OptimizerRecipe,
        *,
        lr_schedule: LRScheduleRecipe | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.value = value
        self.classes = classes
        self.updater = Updater(value.parameters(), optimizer, lr_schedule, owner="a critic")
        self._dtype = next(value.parameters()).dtype
        self._values: Tensor | None = None
        self._quality = Quality()

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        check_label(h, y, self.classes)
        values, slope = self._value_and_slope(h, y)
        self._values = values.detach()
        self.loss = self._values.mean()
        return slope.to(h.dtype)

    def values(self, h: Tensor, y: Tensor | None) -> Tensor:
        assert self._values is not None, "values are asked for after the gradient"
        return self._values

    def wants(self, step: int) -> bool:
        return True

    def learn(self, h: Tensor, y: Tensor | None, delta: Tensor, step: int, *more: Tensor) -> None:
        self._learn(F.mse_loss(self.value(h.to(self._dtype), y), delta.to(self._dtype)))

    def end_step(self) -> None:
        self.updater.advance()

    @property
    def quality(self) -> QualityReading | None:
        return self._quality.read()

    def _learn(self, error: Tensor) -> bool:
        torch.autograd.backward(error)
        stepped = self.updater.step()
        self.updater.clear()
        return stepped

    def _value_and_slope(self, h: Tensor, y: Tensor | None, *, learning: bool = False) -> tuple[Tensor, Tensor]:
        """Return the values of the samples, and the gradient of their mean at h."""
        with torch.enable_grad():
            at = h.detach().to(self._dtype).requires_grad_()
            values: Tensor = self.value(at, y)
            (slope,) = torch.autograd.grad(values.mean(), at, create_graph=learning)
        return values, slope


class Sobolev(Critic):
    """A critic that learns from the gradient as well: its slope is to be that."""

    answer: ClassVar[Answer] = Answer.GRADIENT_AND_VALUES

    def learn(self, h: Tensor, y: Tensor | None, delta: Tensor, step: int, *more: Tensor) -> None:
        values, slope = self._value_and_slope(h, y, learning=True)
        guess, target = slope * len(h), delta.to(self._dtype) * len(h)
        missed = F.mse_loss(guess, target, reduction="sum") / len(h)
        if self._learn(F.mse_loss(values, more[0].to(self._dtype)) + missed):
            self._quality.update(guess.detach(), target)


class _Number(nn.Module):
    """A number that a hidden layer gives, whatever the loss is: the mean over all places; it starts at zero."""

    def __init__(self, features: int, hidden: int, classes: int | None) -> None:
        super().__init__()
        self.norm = row_norm("batch", features)
        self.into = nn.Linear(features, hidden)
        self.label = LabelTable(classes, hidden) if classes else None
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        places = h.flatten(2).transpose(1, 2) if h.dim() == 4 else h
        hidden = self.into(self.norm(places.flatten(0, -2)).view_as(places))
        if self.label is not None:
            if y is None:
                raise UsageError("a critic made for labels got none; give the batches labels, or no classes to it")
            hidden = self.label(hidden, y)
        numbers: Tensor = self.out(F.gelu(hidden))
        return numbers.flatten(1).mean(dim=1)


class _LossOfHead(nn.Module):
    """The loss of what a local classifier says."""

    def __init__(self, head: nn.Module, function: LossFunction) -> None:
        super().__init__()
        self.head = head
        self.function = function

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        return losses_of(self.function, self.head(h), y)


def critic(
    *,
    optimizer: OptimizerRecipe,
    classes: int | None = None,
    hidden: int | None = None,
    lr_schedule: LRScheduleRecipe | None = None,
) -> SignalRecipe:
    """Return the recipe of `Critic`: a hidden layer, and a number for each label."""
    return _recipe(Critic, _number(classes, hidden), optimizer, lr_schedule, classes)


def sobolev(
    *,
    optimizer: OptimizerRecipe,
    classes: int | None = None,
    hidden: int | None = None,
    loss: LossFunction | None = None,
    head: Callable[[Tensor], nn.Module] | None = None,
    lr_schedule: LRScheduleRecipe | None = None,
) -> SignalRecipe:
    """Return the recipe of `Sobolev`, with the network of `critic`; with that of `local_critic` if a loss is given."""
    if loss is None:
        if head is not None:
            raise UsageError("a Sobolev critic has a head that says no loss; give it the loss too")
        return _recipe(Sobolev, _number(classes, hidden), optimizer, lr_schedule, classes)
    if hidden is not None:
        raise UsageError("a Sobolev critic with a loss is a classifier; give it a head in place of hidden")
    if classes is None:
        raise UsageError("a Sobolev critic with a loss is a classifier; give it the number of classes")
    return _recipe(Sobolev, _classifier(loss, classes, head), optimizer, lr_schedule, classes)


def local_critic(
    *,
    loss: LossFunction,
    optimizer: OptimizerRecipe,
    classes: int,
    head: Callable[[Tensor], nn.Module] | None = None,
    lr_schedule: LRScheduleRecipe | None = None,
) -> SignalRecipe:
    """Return the recipe of a `Critic` that is a classifier: linear, or what `head` makes of an example of h."""
    return _recipe(Critic, _classifier(loss, classes, head), optimizer, lr_schedule, classes)


def _number(classes: int | None, hidden: int | None) -> Callable[[Tensor, Tensor | None], nn.Module]:
    if hidden is not None and hidden < 1:
        raise UsageError(f"a critic's hidden is {hidden}; it must be at least 1")

    def make(h: Tensor, y: Tensor | None) -> nn.Module:
        features = h.shape[1 if h.dim() == 4 else -1]
        return _Number(features, hidden or 2 * features, classes)

    return make


def _classifier(
    loss: LossFunction, classes: int, head: Callable[[Tensor], nn.Module] | None
) -> Callable[[Tensor, Tensor | None], nn.Module]:
    def make(h: Tensor, y: Tensor | None) -> nn.Module:
        return _LossOfHead(head(h) if head else make_head(h, y, classes), loss)

    return make


def _recipe(
    kind: type[Critic],
    value: Callable[[Tensor, Tensor | None], nn.Module],
    optimizer: OptimizerRecipe,
    lr_schedule: LRScheduleRecipe | None,
    classes: int | None,
) -> SignalRecipe:
    """Return what makes such a critic, its network from an example of h and of the label."""

    def make(h: Tensor, y: Tensor | None) -> Signal:
        return kind(value(h, y).to(h.device), optimizer, lr_schedule=lr_schedule, classes=classes)

    return Asking(make, kind.answer)
