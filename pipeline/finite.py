"""Whether a tensor is free of NaN and infinity, at little more than the price of reading it once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["count_non_finite", "is_finite", "total_norm"]


def is_finite(tensor: Tensor) -> bool:
    """Return whether every value is finite.

    A sum is far cheaper than a test of every value, and cannot hide one that is not finite. It can itself
    overflow, so a hit is confirmed by the full test.
    """
    if not tensor.is_floating_point():
        return True
    return math.isfinite(tensor.detach().sum().item()) or count_non_finite(tensor) == 0


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all values together; it is finite only if they all are.

    torch.nn.utils.get_total_norm is the same for tensors of many devices and kinds, and takes twice as long.
    """
    if not tensors:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def count_non_finite(tensor: Tensor) -> int:
    """Return how many values are NaN or infinite."""
    return tensor.numel() - int(torch.isfinite(tensor.detach()).sum())
