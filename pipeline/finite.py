"""Whether tensors are free of NaN and infinity, at little more than the price of reading them once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .devices import reading_waits
from .errors import NonFiniteError

__all__ = ["are_finite", "count_non_finite", "is_finite", "non_finite"]


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


def non_finite(where: str, suspects: Iterable[tuple[str, Tensor]]) -> NonFiniteError:
    """Return an error that names the first suspect that is not finite."""
    wrong = (suspect for suspect in suspects if not is_finite(suspect[1]))
    what, tensor = next(wrong, ("the sum of its gradients", torch.tensor(torch.inf)))
    return NonFiniteError(
        f"{where}: {what} has {count_non_finite(tensor)} of {tensor.numel()} values NaN or infinite; "
        f"lower the learning rate, clip, or skip such batches"
    )
