"""What a stage holds for the batches on their way, counted in bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ActivationMeter"]


class ActivationMeter:
    """Counts what a group's forward pass keeps for its backward pass, once, at its first training batch.

    Weights and buffers do not count; a tensor that is kept twice counts once.
    """

    def __init__(self, group: nn.Module) -> None:
        self.saved_bytes = 0
        self._sizes: dict[int, int] = {}
        self._own = {tensor.untyped_storage().data_ptr() for tensor in group.state_dict().values()}
        self._hooks: Any = None
        self._handles = [
            group.register_forward_pre_hook(self._begin),
            group.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, group: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled():
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
            self._hooks.__enter__()

    def _end(self, group: nn.Module, arguments: Any, output: Any) -> None:
        if self._hooks is None:
            return
        self._hooks.__exit__(None, None, None)
        self._hooks = None
        for handle in self._handles:
            handle.remove()
        self.saved_bytes = sum(self._sizes.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor
