"""Numbers that judge a model's output: each a function of (output, label) that returns a mean over the samples."""

from __future__ import annotations

from torch import Tensor

__all__ = ["accuracy"]


def accuracy(output: Tensor, label: Tensor) -> Tensor:
    """Return the share of places where the largest output, over dimension -1, is the label."""
    return (output.argmax(dim=-1) == label).float().mean()
