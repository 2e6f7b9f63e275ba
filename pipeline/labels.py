"""Labels: refused where a signal cannot read them, and how many samples a loss is the mean of."""

from __future__ import annotations

import torch
from torch import Tensor

from .devices import reading_waits
from .errors import LabelError
from .messages import TensorSpec

__all__ = ["check_label", "samples_of"]

IGNORED = -100
"""The label of a place that torch's losses leave out."""


def check_label(h: Tensor, y: Tensor | None, classes: int | None) -> bool:
    """Refuse a label that is to be read as classes and cannot be; return whether it is classes without exception."""
    if classes is None or y is None or y.numel() == 0:
        return False
    if y.dim() == 0 or len(y) != len(h):
        raise LabelError(f"the activation has {len(h)} samples, the label is {TensorSpec.of(y)}")
    if y.is_floating_point():
        if y.shape[-1] != classes:
            raise LabelError(f"a label {TensorSpec.of(y)} is no vector over {classes} classes")
        return False
    ends = y.aminmax()
    low, high = torch.stack(ends).tolist() if reading_waits(y) else (int(end) for end in ends)  # one wait, not two
    whole = low >= 0
    if not whole:
        low = int(y.masked_fill(y == IGNORED, 0).min())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise LabelError(f"label {wrong} is outside the {classes} classes 0..{classes - 1}")
    return whole


def samples_of(h: Tensor, y: Tensor | None, classes: int | None) -> Tensor | int:
    """Return how many samples a loss is the mean of: rows, or the places that have a label and are not ignored.

    The label is checked on the way: where that shows that all places count, there is nothing to add up.
    """
    whole = check_label(h, y, classes)
    if y is None or y.is_floating_point():
        return len(h)
    return y.numel() if whole else torch.count_nonzero(y != IGNORED).clamp(min=1)
