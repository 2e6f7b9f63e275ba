"""What a stage holds for the batches on their way, counted in bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stepahead.pipeline import Activation

__all__ = ["ActivationMeter"]


class ActivationMeter:
    """Counts once, at a stage's first training batch, and says what the stage held at most.

    Of a batch's graph, what the forward pass keeps for the backward pass: weights and buffers do not count, a tensor
    that is kept twice counts once. Besides, what is kept of the batches whose gradient has not come, and the inputs
    that the link holds.
    """

    def __init__(self) -> None:
        self._saved: dict[int, int] = {}
        self._own: set[int] = set()
        self._hooks: Any = None
        self._handles: list[Any] = []
        self._input = 0

    def begin(self, group: nn.Module, batch: Activation) -> None:
        """Get ready for the group's first batch, given it."""
        self._own = {tensor.untyped_storage().data_ptr() for tensor in group.state_dict().values()}
        self._input = sum(value.nbytes for value in batch.values)
        self._handles = [
            group.register_forward_pre_hook(self._begin),
            group.register_forward_hook(self._end, always_call=True),
        ]

    def peak(self, graphs: int, held: int, queued: int) -> int:
        """Return the bytes of so many graphs, what was held besides, and so many inputs in the link."""
        return sum(self._saved.values()) * max(graphs, 1) + held + queued * self._input

    def _begin(self, group: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled():
            # again: the weights may be copies for this pass
            self._own |= {tensor.untyped_storage().data_ptr() for tensor in group.state_dict().values()}
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
            self._hooks.__enter__()

    def _end(self, group: nn.Module, arguments: Any, output: Any) -> None:
        if self._hooks is None:
            return
        self._hooks.__exit__(None, None, None)
        self._hooks = None
        for handle in self._handles:
            handle.remove()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor
