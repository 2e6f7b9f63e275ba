"""Local probes: a stage steps on the loss of a small classifier of its own, and needs nobody below."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import UsageError
from .labels import check_label
from .signals import Asking, LossFunction, Signal, SignalRecipe, apply_loss
from .updates import LRScheduleRecipe, OptimizerRecipe, Updater

__all__ = ["Probe", "make_head", "probe"]


class Probe(Signal):
    """The gradient of a local loss: a small head of its own predicts the label from `h`."""

    def __init__(
        self,
        head: nn.Module,
        function: LossFunction,
        optimizer: OptimizerRecipe,
        *,
        lr_schedule: LRScheduleRecipe | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.function = function
        self.classes = classes
        self.updater = Updater(head.parameters(), optimizer, lr_schedule, owner="a probe")
        self._dtype = next(head.parameters()).dtype

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        check_label(h, y, self.classes)
        h = h.detach().requires_grad_()
        loss = apply_loss(self.function, self.head(h.to(self._dtype)), y)
        torch.autograd.backward(loss)
        self.updater.step()
        self.updater.clear()
        self.loss = loss.detach()
        assert h.grad is not None
        return h.grad

    def end_step(self) -> None:
        self.updater.advance()


def make_head(h: Tensor, y: Tensor | None, classes: int) -> nn.Module:
    """Build a linear classifier for activations like `h`: of each place, or of the mean over all places."""
    if h.dim() == 4:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(h.shape[1], classes))
    if h.dim() == 3 and y is not None and y.dim() == 1:
        return nn.Sequential(_MeanOverPlaces(), nn.Linear(h.shape[2], classes))
    if h.dim() in (2, 3):
        return nn.Linear(h.shape[-1], classes)
    raise UsageError(f"no probe is known for activations of shape {list(h.shape)}; give the probe a head of your own")


def probe(
    *,
    loss: LossFunction,
    optimizer: OptimizerRecipe,
    classes: int,
    head: Callable[[Tensor], nn.Module] | None = None,
    lr_schedule: LRScheduleRecipe | None = None,
) -> SignalRecipe:
    """Return the recipe of `Probe`, with a linear head or one that `head` makes from an example of the activation."""

    def make(h: Tensor, y: Tensor | None) -> Signal:
        made = head(h) if head else make_head(h, y, classes)
        return Probe(made.to(h.device), loss, optimizer, lr_schedule=lr_schedule, classes=classes)

    return Asking(make, every=0)


class _MeanOverPlaces(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean(dim=1)
