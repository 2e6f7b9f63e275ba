"""What predictors are made of: their interface, a table for labels, norms for rows, layers that start at zero."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import UsageError, did_you_mean

__all__ = ["LabelTable", "Predictor", "add_label", "required", "row_norm", "zeroed"]


class Predictor(nn.Module, ABC):
    """Maps an activation, and a label if it was made for one, to a gradient of the activation's shape."""

    classes: int | None

    @abstractmethod
    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor: ...


class LabelTable(nn.Module):
    """Adds one row of a table for each label: a one-hot label times a matrix, without the zeros.

    A negative label (an ignored place) adds nothing. A label of floating dtype is taken as a vector over the classes.
    """

    def __init__(self, classes: int, width: int, *, zero: bool = False) -> None:
        super().__init__()
        self.classes = classes
        bound = 0.0 if zero else (classes + width) ** -0.5
        table = torch.empty(classes + 1, width).uniform_(-bound, bound)
        table[classes] = 0.0  # the row of an ignored place; it stays zero
        self.weight = nn.Parameter(table)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        rows = self._rows(y)
        while rows.dim() < h.dim():  # one label for all places of a sequence
            rows = rows.unsqueeze(1)
        return h + rows

    def _rows(self, y: Tensor) -> Tensor:
        if y.is_floating_point():
            return y.to(self.weight.dtype) @ self.weight[: self.classes]
        return F.embedding(torch.where(y < 0, self.classes, y), self.weight, padding_idx=self.classes)


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def row_norm(norm: str, width: int) -> nn.Module:
    """Return a norm for rows of features."""
    if norm == "batch":  # batch statistics only: a predictor runs twice a step, and never in an evaluation
        return _BatchNorm(width, track_running_stats=False)
    if norm == "layer":
        return nn.LayerNorm(width)
    raise UsageError(f"there is no norm {norm!r} for an mlp predictor; {did_you_mean(norm, ['batch', 'layer'])}")


class _BatchNorm(nn.BatchNorm1d):
    """Batch statistics; a single row, which has none, is only scaled."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if len(input) > 1 else input * self.weight + self.bias


def add_label(table: LabelTable | None, h: Tensor, y: Tensor | None) -> Tensor:
    return h if table is None else table(h, required(y))


def required(y: Tensor | None) -> Tensor:
    if y is None:
        raise UsageError("a predictor made for labels got none; give the batches labels, or no classes to the signal")
    return y
