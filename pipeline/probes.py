"""Local probes: a stage steps on the loss of a small classifier of its own, and needs nobody below."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import UsageError
from .signals import LossFunction, OptimizerRecipe, Signal, SignalRecipe, apply_loss

__all__ = ["Probe", "make_head", "probe"]


class Probe(Signal):
    """The gradient of a local loss: a small head of its own predicts the label from `h`."""

    def __init__(self, head: nn.Module, function: LossFunction, optimizer: OptimizerRecipe) -> None:
        super().__init__()
        self.head = head
        self.function = function
        self.optimizer = optimizer(head.parameters())

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        h = h.detach().requires_grad_()
        loss = apply_loss(self.function, self.head(h), y)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss = loss.detach()
        assert h.grad is not None
        return h.grad


def make_head(h: Tensor, y: Tensor | None, classes: int) -> nn.Module:
    """Build a linear classifier for activations like `h`: of each place, or of the mean over all places."""
    if h.dim() == 4:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(h.shape[1], classes))
    if h.dim() == 3 and y is not None and y.dim() == 1:
        return nn.Sequential(_MeanOverPlaces(), nn.Linear(h.shape[2], classes))
    if h.dim() in (2, 3):
        return nn.Linear(h.shape[-1], classes)
    raise UsageError(f"no probe is known for activations of shape {list(h.shape)}; bring a head of your own")


def probe(*, loss: LossFunction, optimizer: OptimizerRecipe, classes: int) -> SignalRecipe:
    """Return the recipe of `Probe` with a linear head."""

    def make(h: Tensor, y: Tensor | None) -> Signal:
        signal = Probe(make_head(h, y, classes).to(h.device), loss, optimizer)
        signal.classes = classes
        return signal

    return make


class _MeanOverPlaces(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean(dim=1)
