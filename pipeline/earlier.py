"""Circles through time: what a node of a graph put out a batch ago, and a guess of what that is worth.

The nodes of a stage that use such values are run as one recurrent core (`recurrent.py`), and the values are its state:
they are carried on from batch to batch, and the gradient at them is guessed where a batch ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import CutError
from .names import EARLIER, PART
from .recurrent import Recurrent
from .signals import SignalRecipe
from .states import State, tensors_of

__all__ = ["Earlier", "ThroughTime"]


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
        object.__setattr__(self, "source", source)  # a dataclass's own __init__ would take the shape as one tuple
        object.__setattr__(self, "shape", shape)

    @property
    def name(self) -> str:
        """What it is called among what nodes use."""
        return f"{self.source}{EARLIER}"


@dataclass(frozen=True, slots=True)
class ThroughTime:
    """What is used a batch later, and how."""

    edges: tuple[Earlier, ...]
    future: SignalRecipe | None
    windows: int | None

    def check_options(self) -> None:
        """Refuse options that would do nothing."""
        if self.future is not None and not callable(self.future):
            raise CutError(
                f"the future of a graph is a {type(self.future).__name__}; give a recipe, as synthetic(..) is"
            )
        for name, value in {"future": self.future, "windows": self.windows}.items():
            if value is not None and not self.edges:
                raise CutError(
                    f"the graph was given {name}, and no node uses what was put out a batch ago: Earlier('node', width)"
                )
        if self.windows is not None and (not isinstance(self.windows, int) or self.windows < 1):
            raise CutError(f"a sequence has {self.windows!r} windows; it must be a whole number of at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(edge.name for edge in self.edges)

    def among(self, used: Collection[str]) -> ThroughTime:
        """Return what some nodes use."""
        return replace(self, edges=tuple(edge for edge in self.edges if edge.name in used))

    def loop(self, core: Callable[[Tensor, State | None], tuple[Tensor, State]]) -> Recurrent | None:
        """Return what runs nodes with what was earlier, if there is any."""
        return Recurrent(core, self.future, windows=self.windows) if self.edges else None

    def values(self, batch: Tensor, state: State | None) -> dict[str, Any]:
        """Return by name what was earlier: a state, or zeros for each sample of a batch."""
        if state is not None:  # copies: a node may change them in place, and others still need the state
            return dict(zip(self.names, (tensor.clone() for tensor in tensors_of(state)), strict=True))
        dtype = _dtype_beside(batch)
        return {edge.name: batch.new_zeros(len(batch), *edge.shape, dtype=dtype) for edge in self.edges}

    def state(self, values: Mapping[str, Any]) -> State:
        """Return what will be earlier, of all values by name; of a node that was run elsewhere what was."""
        return tuple(values.get(edge.source, values[edge.name]) for edge in self.edges)

    def check(self, values: Mapping[str, Any], batch: Tensor) -> None:
        """Refuse what nodes put out for a batch, if it is not what is used a batch later."""
        rows = len(batch)
        for edge in self.edges:
            if edge.source not in values:
                node, _, part = edge.source.partition(PART)
                raise CutError(f"{edge.source!r} is used a batch later, and node {node!r} has no output {part}")
            out, said = values[edge.source], f"{edge.source!r} is used a batch later"
            if not isinstance(out, Tensor):
                raise CutError(f"{said}, and is a {type(out).__name__}, not a tensor")
            if tuple(out.shape) != (rows, *edge.shape):
                shapes = f"{list(edge.shape)} for each sample, and is {list(out.shape)} for {rows} samples"
                raise CutError(f"{said} with the shape {shapes}")
            if out.dtype != (wanted := _dtype_beside(batch)):
                raise CutError(f"{said}, and is of {out.dtype}; make it {wanted}")


def _dtype_beside(batch: Tensor) -> torch.dtype:
    return batch.dtype if batch.is_floating_point() else torch.get_default_dtype()
