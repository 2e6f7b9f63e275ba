"""Bundles: several tensors that cross a cut together, as one tensor with a row for each sample.

Stages, links and schedules know a single tensor at each cut. Where a graph has several values there (a skip, two
branches, the raw input) their rows lie one behind the other. A value by itself crosses as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .errors import CutError

__all__ = ["Bundle", "Value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What a node of a graph puts out, as an example showed it."""

    name: str
    shape: tuple[int, ...]
    """Of one sample."""
    dtype: torch.dtype
    learns: bool
    """Whether a gradient at it is of use: something that learns comes before it."""

    @property
    def width(self) -> int:
        return prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} [{'x'.join(map(str, self.shape))}]" if self.shape else self.name


@dataclass(frozen=True, slots=True)
class Bundle:
    """The values that cross together."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        floating = {value.dtype for value in self.values if value.dtype.is_floating_point or value.dtype.is_complex}
        if not self.is_single and (len(floating) > 1 or any(dtype.is_complex for dtype in floating)):
            what = " and ".join(f"{value} ({value.dtype})".replace("torch.", "") for value in self.values)
            raise CutError(f"{what} cross one cut; make them of one real dtype, or cut elsewhere")

    @property
    def is_single(self) -> bool:
        return len(self.values) == 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the whole."""
        return next((value.dtype for value in self.values if value.dtype.is_floating_point), torch.float32)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the values as one tensor."""
        if self.is_single:
            return tensors[self.values[0].name]
        return self.join([tensors[value.name] for value in self.values])

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """Return the values by name; no gradient flows into one that has no use for it."""
        if self.is_single:
            return {self.values[0].name: packed}
        # each by itself in memory, as a node would have made it: products of matrices are then the same to the bit,
        # and a node may change it in place
        alone = [part.clone(memory_format=torch.contiguous_format) for part in self.split(packed)]
        parts = zip(self.values, alone, strict=True)
        return {value.name: part if value.learns else part.detach().to(value.dtype) for value, part in parts}

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return tensors of the values' shapes one behind the other."""
        return torch.cat([self._row(part) for part in parts], dim=1)

    def split(self, packed: Tensor) -> list[Tensor]:
        """Return the part of each value, in its shape and where it is."""
        parts = packed.split([value.width for value in self.values], dim=1)
        return [part.view(-1, *value.shape) for part, value in zip(parts, self.values, strict=True)]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))

    def _row(self, part: Tensor) -> Tensor:
        most = round(2 / torch.finfo(self.dtype).eps)  # whole numbers below this are floats exactly
        whole = not part.is_floating_point() and part.dtype is not torch.bool
        if whole and torch.iinfo(part.dtype).max >= most and part.numel() and int(part.abs().max()) >= most:
            raise CutError(f"{self} cross one cut: whole numbers of {most:,} and more cannot; cut elsewhere")
        return part.reshape(len(part), -1).to(self.dtype)
