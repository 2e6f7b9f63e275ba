"""All that crosses a link between two stages.

Every message names its edge and its step, so that a receiver can tell a gap, a duplicate or a stray
from the message that it waits for. Tensors come as a tuple: a chain sends one, a graph may send more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from .errors import MessageError

__all__ = ["Activation", "Gradient", "GradientKind", "Mark", "MarkKind", "Message", "TensorSpec", "edge_name"]


class GradientKind(StrEnum):
    """What a gradient that travels upstream is worth."""

    TARGET = "target"
    """Made by the stage below with its own signal, a synthetic one for example: a bootstrapped target."""
    TRUTH = "truth"
    """The true gradient of the loss, at the weights that the stages below had for this batch."""
    NONE = "none"
    """There is none: the stage below left the batch out, or the one above would not learn from it."""


class MarkKind(StrEnum):
    """What a mark asks of every stage that it passes, behind the batch that it follows."""

    EVALUATE = "evaluate"
    SNAPSHOT = "snapshot"
    SETTLE = "settle"
    """Learn from all gradients that are still to come before anything else is taken in."""
    STOP = "stop"
    """Settle, and be done."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activation:
    """One batch on its way down: what a stage computed, and the label that travels with it."""

    edge: str
    step: int
    tensors: tuple[Tensor, ...]
    label: Tensor | None = None
    training: bool = True
    """False for a batch of an evaluation: the mode belongs to the message, not to the stage."""

    def __post_init__(self) -> None:
        _check_head(self.edge, self.step)
        _check_tensors(self.edge, self.tensors)
        if self.label is not None and not isinstance(self.label, Tensor):
            raise MessageError(f"the label on edge {self.edge} is a {type(self.label).__name__}, not a tensor")

    @property
    def values(self) -> tuple[Tensor, ...]:
        """All that travels, the label last."""
        return self.tensors if self.label is None else (*self.tensors, self.label)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gradient:
    """The gradient at a stage's output on its way up, for the batch of `step`."""

    edge: str
    step: int
    tensors: tuple[Tensor, ...]
    kind: GradientKind

    def __post_init__(self) -> None:
        _check_head(self.edge, self.step)
        _check_tensors(self.edge, self.tensors)

    @property
    def values(self) -> tuple[Tensor, ...]:
        """All that travels."""
        return self.tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A word of control that flows down in band, behind the batch of `step`."""

    edge: str
    step: int
    kind: MarkKind

    def __post_init__(self) -> None:
        _check_head(self.edge, self.step)

    @property
    def values(self) -> tuple[Tensor, ...]:
        """A mark carries none."""
        return ()


Message = Activation | Gradient | Mark


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype and shape that an edge's first message fixes for all that follow."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tensor.dtype, tuple(tensor.shape))

    def admits(self, tensor: Tensor) -> bool:
        """Return whether the tensor fits: the same but for the size of the batch."""
        shape = tensor.shape
        return tensor.dtype == self.dtype and len(shape) == len(self.shape) and shape[1:] == self.shape[1:]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


def edge_name(sender: int, receiver: int) -> str:
    """Return the name of the edge between two stages; stage -1 is where the data comes from."""
    return f"{'data' if sender < 0 else sender}>{receiver}"


def _check_head(edge: str, step: int) -> None:
    if not edge:
        raise MessageError("a message needs the name of its edge, for example '0>1'")
    if step < 0:
        raise MessageError(f"the step of a message on edge {edge} is {step}; steps count from 0")


def _check_tensors(edge: str, tensors: Sequence[object]) -> None:
    if not isinstance(tensors, tuple) or not tensors:
        got = "an empty tuple" if isinstance(tensors, tuple) else f"a {type(tensors).__name__}"
        raise MessageError(f"a message on edge {edge} needs a tuple of tensors, not {got}")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise MessageError(f"a message on edge {edge} carries a {type(tensor).__name__}, not a tensor")
