"""States of recurrent cores: a tensor, or a tuple of them or of such tuples, with a place in it for each sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, Union

import torch
from torch import Tensor

from .errors import UsageError

__all__ = ["State", "check_state", "from_rows", "map_state", "rows_of", "tensors_of"]

State: TypeAlias = Union[Tensor, "tuple[State, ...]"]


def tensors_of(state: object) -> list[Tensor]:
    """Return a state's tensors in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, tuple):
        return [tensor for part in state for tensor in tensors_of(part)]  # pyright: ignore[reportUnknownVariableType]
    raise UsageError(f"a recurrent state is a tensor or a tuple of them; a {type(state).__name__} came")


def check_state(state: object, sequences: int, batch: int) -> None:
    """Refuse a state that cannot be carried on, or has no place in dimension `batch` for each sequence."""
    tensors = tensors_of(state)
    if not tensors:
        raise UsageError("a recurrent state is a tensor or a tuple of them; an empty tuple came")
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise UsageError(f"a recurrent state takes gradients; a tensor of {tensor.dtype} in it cannot")
        if tensor.dim() <= batch or tensor.shape[batch] != sequences:
            raise UsageError(
                f"a window has {sequences} sequences, and a tensor of its state the shape {list(tensor.shape)}: "
                f"that is not one for each in dimension {batch}; say which it is, Recurrent(.., batch_dim=1)"
            )


def map_state(change: Callable[[Tensor], Tensor], state: State) -> State:
    """Return a state of the same form, each tensor changed."""
    return change(state) if isinstance(state, Tensor) else tuple(map_state(change, part) for part in state)


def rows_of(tensors: Sequence[Tensor], batch: int) -> Tensor:
    """Return what some tensors hold as a row for each sequence; `batch` is the dimension that counts sequences."""
    return torch.cat([tensor.movedim(batch, 0).reshape(tensor.shape[batch], -1) for tensor in tensors], dim=1)


def from_rows(rows: Tensor, like: Sequence[Tensor], batch: int) -> list[Tensor]:
    """Return rows as tensors like those that they were made of."""
    return list(_split(rows, like, batch))


def _split(rows: Tensor, like: Sequence[Tensor], batch: int) -> Iterator[Tensor]:
    at = 0
    for tensor in like:
        first = tensor.movedim(batch, 0)
        width = first[0].numel()
        yield rows[:, at : at + width].reshape(first.shape).movedim(0, batch)
        at += width
