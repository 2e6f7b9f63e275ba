"""Circles through time: what a node of a graph put out a batch ago, and a guess of what that is worth.

The nodes of a stage that use such values are run as one recurrent core (`recurrent.py`), and the values are its state:
they are carried on from batch to batch, and the gradient at them is guessed where a batch ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import CutError
from .recurrent import Recurrent
from .signals import SignalRecipe
from .states import State, tensors_of

__all__ = ["PART", "Earlier", "Time", "check_earlier", "node_of"]

PART = ":"
"""Between a node's name and the number of an output, of those that have several."""


def node_of(name: str) -> str:
    """Return the node that an output belongs to."""
    return name.partition(PART)[0]


@dataclass(frozen=True, init=False)
class Earlier:
    """What a node put out a batch ago; zeros at first.

    Args:
        source: The node, or "name:1" of one that returns a tuple.
        shape: Of one sample.
    """

    source: str
    shape: tuple[int, ...]

    def __init__(self, source: str, *shape: int) -> None:
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "shape", shape)

    @property
    def name(self) -> str:
        return f"{self.source}{PART}earlier"


@dataclass(frozen=True, slots=True)
class Time:
    """What is used a batch later, and how."""

    edges: tuple[Earlier, ...]
    future: SignalRecipe | None
    windows: int | None

    def among(self, names: Sequence[str]) -> Time:
        """Return what some nodes' outputs are used for."""
        return replace(self, edges=tuple(edge for edge in self.edges if node_of(edge.source) in names))

    def loop(self, core: Callable[[Tensor, State | None], tuple[Tensor, State]]) -> Recurrent | None:
        """Return what runs nodes with what was earlier, if there is any."""
        return Recurrent(core, self.future, windows=self.windows) if self.edges else None

    def values(self, rows: int, device: torch.device, state: State | None) -> dict[str, Any]:
        """Return by name what was earlier: a state, or zeros for as many samples."""
        if state is not None:
            return dict(zip((edge.name for edge in self.edges), tensors_of(state), strict=True))
        return {edge.name: torch.zeros(rows, *edge.shape, device=device) for edge in self.edges}

    def state(self, values: Mapping[str, Any]) -> State:
        """Return what will be earlier, of all values by name."""
        return tuple(values[edge.source] for edge in self.edges)


def check_earlier(edge: Earlier, out: Any, rows: int) -> None:
    """Refuse what is used a batch later if it is not what the node puts out."""
    if not isinstance(out, Tensor):
        raise CutError(f"{edge.source!r} is used a batch later, and is a {type(out).__name__}, not a tensor")
    if tuple(out.shape) != (rows, *edge.shape):
        raise CutError(
            f"{edge.source!r} is used a batch later with the shape {list(edge.shape)} for each sample, and is "
            f"{list(out.shape)} for {rows} samples"
        )
    if out.dtype != torch.get_default_dtype():
        raise CutError(
            f"{edge.source!r} is used a batch later, and of {out.dtype}; make it {torch.get_default_dtype()}"
        )
