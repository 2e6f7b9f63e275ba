"""What a stage takes in from above: the batch whose turn it is, of the shape that the first one had."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import CutError, MessageError
from .messages import Activation, TensorSpec, edge_name

__all__ = ["Intake"]


class Intake:
    """Checks the batches of one stage, and brings them to its device.

    Args:
        index: The stage's.
        device: Where its group is.
        raw: Whether it takes raw batches, whichever stage this is.
    """

    def __init__(self, index: int, device: torch.device, *, raw: bool = False) -> None:
        self.edge = edge_name(index - 1, index)
        self._index = index
        self._device = device
        self._raw = raw or index == 0
        self._specs: dict[str, TensorSpec] = {}

    def take(self, activation: Activation, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the batch of a step and its label, the batch ready to collect its gradient."""
        self._check(activation, step)
        tensor, label = activation.tensors[0], activation.label
        self._check_spec("the activation from above", tensor, step)
        if label is not None:
            self._check_spec("the label", label, step)
            label = label.to(self._device).contiguous()
        h_in = tensor.to(self._device).detach().contiguous()  # as a link would deliver it
        if not self._raw:
            if not h_in.is_floating_point():
                what = f"a {h_in.dtype} comes over the cut, and no gradient goes back; cut elsewhere"
                raise CutError(f"stage {self._index}, step {step}: {what}")
            h_in.requires_grad_()
        return h_in, label

    def _check(self, activation: Activation, step: int) -> None:
        who = f"stage {self._index}"
        if activation.edge != self.edge:
            raise MessageError(f"{who} listens on edge {self.edge}; a message came for {activation.edge}")
        if not activation.training:
            raise MessageError(f"{who} got a batch of an evaluation to train on; use evaluate()")
        if len(activation.tensors) != 1:
            raise MessageError(f"{who} takes one tensor a batch, got {len(activation.tensors)}")
        if activation.tensors[0].numel() == 0:
            raise MessageError(f"{who}, step {activation.step}: the batch is empty")
        if activation.step != step:
            raise MessageError(f"{who} waits for step {step}, got step {activation.step}")

    def _check_spec(self, what: str, tensor: Tensor, step: int) -> None:
        spec = self._specs.get(what)
        if spec is None:
            self._specs[what] = TensorSpec.of(tensor)
        elif not spec.admits(tensor):
            found = f"{what} is {TensorSpec.of(tensor)}, the first one was {spec}"
            raise MessageError(f"stage {self._index}, step {step}: {found}")
