"""Whether tensors are free of NaN and infinity, at little more than the price of reading them once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .devices import reading_waits

__all__ = ["are_finite", "count_non_finite", "is_finite"]


def is_finite(tensor: Tensor) -> bool:
    """Return whether every value is finite.

    A sum is far cheaper than a test of every value, and cannot hide one that is not finite. It can itself
    overflow, so a hit is confirmed by the full test.
    """
    if not tensor.is_floating_point():
        return True
    if tensor.requires_grad:
        tensor = tensor.detach()
    return math.isfinite(tensor.sum().item()) or count_non_finite(tensor) == 0


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether every value of all tensors is finite; on a GPU with one wait for all of them."""
    if tensors and reading_waits(tensors[0]):  # in double precision, for a sum of sums is not looked into again
        tensors = [torch.stack([tensor.sum(dtype=torch.float64) for tensor in tensors])]
    return all(is_finite(tensor) for tensor in tensors)


def count_non_finite(tensor: Tensor) -> int:
    """Return how many values are NaN or infinite."""
    return tensor.numel() - int(torch.isfinite(tensor.detach()).sum())
