"""Passes of a group: forward, forward again with the draws of then, backward; in a test, without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from .errors import CutError
from .groups import Group, evaluating
from .messages import TensorSpec
from .randomness import keyed

__all__ = ["Pass", "Passes"]

WITH_GRAPH = nullcontext()


@dataclass(slots=True)
class Pass:
    """A forward pass: the group's input and output, attached, and the weights that it went through."""

    h_in: Tensor
    h_out: Tensor
    weights: Sequence[Tensor]
    copied: bool = False
    """Whether those are copies, which stay as they are while the group steps on."""


class Passes:
    """Runs one group.

    Args:
        group: The layers.
        seed, index: Draws are keyed by them and the step.
        device: Where the group is.
    """

    def __init__(self, group: Group, *, seed: int, index: int, device: torch.device) -> None:
        self.group = group
        self._place = seed, index
        self._device = device
        self._named = {name: weight for name, weight in group.named_parameters() if weight.requires_grad}
        self.weights = list(self._named.values())
        """Those that are trained."""

    def forward(self, h_in: Tensor, step: int, *, graph: bool = True, copied: bool = False) -> Pass:
        """Run a batch.

        Args:
            graph: Whether there will be a backward pass.
            copied: Whether that will be so late that the weights will have moved: it goes through copies then.
        """
        if copied:
            return self._through_copies(h_in, step)
        with self._drawing(step), WITH_GRAPH if graph else torch.no_grad():
            return Pass(h_in, self._run(h_in), self.weights)

    def again(self, h_in: Tensor, step: int) -> Pass:
        """Run a batch with today's weights and the draws of then; the group's buffers stay as they are."""
        buffers = {name: buffer.clone() for name, buffer in self.group.named_buffers()}
        given = h_in.detach()
        if self._place[1] > 0:  # the data itself needs no gradient
            given.requires_grad_()
        with self._drawing(step):
            return Pass(given, self._run(given, buffers), self.weights)

    def _through_copies(self, h_in: Tensor, step: int) -> Pass:
        """Run a batch through copies of weights and buffers; what it does to the buffers is done to the group's own."""
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in self._named.items()}
        own = dict(self.group.named_buffers())
        buffers = {name: buffer.clone() for name, buffer in own.items()}
        with self._drawing(step):
            h_out = self._run(h_in, {**weights, **buffers})
        for name, buffer in own.items():
            buffer.copy_(buffers[name])
        return Pass(h_in, h_out, list(weights.values()), copied=True)

    def copy_buffers(self) -> list[Tensor]:
        """Return copies of the group's buffers, to go back to."""
        return [buffer.clone() for buffer in self.group.buffers()]

    def restore_buffers(self, copies: Sequence[Tensor]) -> None:
        """Go back to copies of the buffers, if there are any."""
        for buffer, copy in zip(self.group.buffers(), copies, strict=False):
            buffer.copy_(copy)

    def evaluate(self, h_in: Tensor, step: int) -> Tensor:
        """Run a batch in eval mode, without a graph."""
        with evaluating(self.group), self._drawing(step, "evaluate"):
            return self._run(h_in)

    def backward(self, forward: Pass, d: Tensor, term: Tensor | None = None, *, retain: bool = False) -> None:
        """Leave the gradients at the group's weights and the pass's input, given that at its output.

        Args:
            term: A loss of the group's own.
            retain: Whether the graph will be gone through again.
        """
        attached = [(forward.h_out, d)] if term is None else [(forward.h_out, d), (term, torch.ones_like(term))]
        attached = [(tensor, gradient) for tensor, gradient in attached if tensor.requires_grad]
        if attached:  # not so for a frozen first stage
            tensors, gradients = zip(*attached, strict=True)
            torch.autograd.backward(tensors, gradients, retain_graph=retain)
        if forward.copied:
            for weight, copy in zip(self.weights, forward.weights, strict=True):
                weight.grad, copy.grad = copy.grad, None

    def gradients(
        self, forward: Pass, inputs: Sequence[Tensor], d: Tensor, *, retain: bool = False
    ) -> list[Tensor | None]:
        """Return the gradients at some inputs of a pass, given that at its output; None where it does not depend."""
        return list(torch.autograd.grad(forward.h_out, inputs, d, retain_graph=retain, allow_unused=True))

    def _drawing(self, step: int, *purpose: str) -> keyed:
        return keyed(*self._place, step, *purpose, device=self._device)

    def _run(self, h_in: Tensor, in_place_of: dict[str, Tensor] | None = None) -> Tensor:
        """Run the group, with other weights or buffers in place of its own."""
        version = h_in._version
        try:
            h_out: Tensor = functional_call(self.group, in_place_of, (h_in,)) if in_place_of else self.group(h_in)
        except RuntimeError as error:
            if "leaf Variable that requires grad" in str(error):
                raise self._changed_in_place() from error
            error.add_note(f"in {self._title}, on an input {TensorSpec.of(h_in)}")
            raise
        if h_in._version != version:
            raise self._changed_in_place()
        return h_out

    @property
    def _title(self) -> str:
        return f"stage {self._place[1]} ({self.group.title})"

    def _changed_in_place(self) -> CutError:
        return CutError(
            f"{self._title} changes its input in place, which others still need; "
            f"make the layer that does it work out of place, for example nn.ReLU(inplace=False)"
        )
