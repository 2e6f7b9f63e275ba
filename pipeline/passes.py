"""Passes of a group: forward, forward again with the draws of then, backward; in a test, without a graph."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from .errors import CutError
from .groups import Group, evaluating
from .messages import TensorSpec
from .parts import Span, no_span
from .quality import QualityReading
from .randomness import keyed
from .recurrent import Carried, Recurrent, Window, recurrent_in
from .signals import LossFunction, apply_loss
from .states import tensors_of

__all__ = ["Before", "Pass", "Passes"]

WITH_GRAPH = nullcontext()


@dataclass(slots=True)
class Pass:
    """A forward pass: the group's input and output, attached, and the weights that it went through."""

    h_in: Tensor
    h_out: Tensor
    weights: Sequence[Tensor]
    carried: list[Carried]
    """What its recurrent layers had from the window before."""
    windows: list[tuple[Recurrent, Window]]
    """What they are to go back through from a guess, too."""
    node_losses: list[tuple[LossFunction, Tensor]]
    """Of layers that have a loss of their own, and what it judges."""
    copied: bool = False
    """Whether the weights are copies, which stay as they are while the group steps on."""

    @property
    def input_gradient(self) -> Tensor:
        """What the backward pass left at the input; zeros, made only when asked for, where nothing depends on it."""
        return torch.zeros_like(self.h_in) if self.h_in.grad is None else self.h_in.grad


@dataclass(frozen=True, slots=True)
class Before:
    """How a group was before a batch, but for its weights."""

    buffers: list[Tensor]
    carried: list[Carried]


class Passes:
    """Runs one group.

    Args:
        group: The layers.
        seed, index: Draws are keyed by them and the step.
        device: Where the group is.
        span: Wraps the parts of a step.
    """

    def __init__(self, group: Group, *, seed: int, index: int, device: torch.device, span: Span = no_span) -> None:
        self.group = group
        self.recurrent = recurrent_in(group)
        for layer in self.recurrent:
            layer.reset()
        self.span = span
        self._place = seed, index
        self._device = device
        self._named = {name: weight for name, weight in group.named_parameters() if weight.requires_grad}
        self.weights = list(self._named.values())
        """Those that are trained."""
        self.node_loss: Tensor | None = None
        """The sum of the losses of layers' own, in the pass that was last gone back through."""

    def forward(self, h_in: Tensor, step: int, *, graph: bool = True, copied: bool = False) -> Pass:
        """Run a batch.

        Args:
            graph: Whether there will be a backward pass.
            copied: Whether that will be so late that the weights will have moved: it goes through copies then.
        """
        if copied:
            return self._through_copies(h_in, step)
        carried = self._carried
        with self._drawing(step), WITH_GRAPH if graph else torch.no_grad():
            return self._pass(h_in, self._run(h_in), self.weights, carried)

    def again(self, h_in: Tensor, step: int, carried: Sequence[Carried], *, steps: bool = False) -> Pass:
        """Run a batch with today's weights and the draws of then; the group's buffers stay as they are.

        Args:
            carried: What its recurrent layers had then.
            steps: Whether the group will step on this pass: then they guess, too.
        """
        buffers = {name: buffer.clone() for name, buffer in self.group.named_buffers()}
        given = h_in.detach()
        if self._place[1] > 0:  # the data itself needs no gradient
            given.requires_grad_()
        with self._drawing(step), self._as_then(carried, steps):
            return self._pass(given, self._run(given, buffers), self.weights, list(carried))

    def _through_copies(self, h_in: Tensor, step: int) -> Pass:
        """Run a batch through copies of weights and buffers; what it does to the buffers is done to the group's own."""
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in self._named.items()}
        own, carried = dict(self.group.named_buffers()), self._carried
        buffers = {name: buffer.clone() for name, buffer in own.items()}
        with self._drawing(step):
            h_out = self._run(h_in, {**weights, **buffers})
        for name, buffer in own.items():
            buffer.copy_(buffers[name])
        return self._pass(h_in, h_out, list(weights.values()), carried, copied=True)

    def _pass(
        self, h_in: Tensor, h_out: Tensor, weights: Sequence[Tensor], carried: list[Carried], *, copied: bool = False
    ) -> Pass:
        return Pass(h_in, h_out, weights, carried, self._windows(), self.group.take_node_losses(), copied)

    def before(self) -> Before:
        """Return how the group is now, to go back to."""
        return Before([buffer.clone() for buffer in self.group.buffers()], self._carried)

    def go_back(self, before: Before | None) -> None:
        """Let the group be as it was, if that is known."""
        if before is not None:
            for layer, carried in zip(self.recurrent, before.carried, strict=True):
                layer.pass_over(carried)
            for buffer, copy in zip(self.group.buffers(), before.buffers, strict=True):
                buffer.copy_(copy)

    def leave_out(self) -> None:
        """Let recurrent layers know that a batch is not run."""
        for layer in self.recurrent:
            layer.pass_over(layer.carried)

    @property
    def states(self) -> list[tuple[str, Tensor]]:
        """What recurrent layers carry on, to be looked at."""
        states = [layer.carried.state for layer in self.recurrent]
        return [("what it carries on", tensor) for state in states if state is not None for tensor in tensors_of(state)]

    def evaluate(self, h_in: Tensor, step: int) -> Tensor:
        """Run a batch in eval mode, without a graph."""
        with evaluating(self.group), self._drawing(step, "evaluate"):
            return self._run(h_in)

    def backward(
        self,
        forward: Pass,
        d: Tensor | None,
        step: int,
        y: Tensor | None,
        term: Callable[[Tensor, Tensor | None], Tensor | None],
        *,
        retain: bool = False,
    ) -> None:
        """Leave the gradients at the group's weights and the pass's input, given that at its output.

        Args:
            d: The gradient, or None for one that only losses of layers' own move.
            step: The batch's.
            y: Its label.
            term: Makes one more loss, from the group's output and the label.
            retain: Whether the graph will be gone through again.
        """
        guessed = self._guess(forward, step)
        with self.span("backward"):
            of_layers, more = _node_losses(forward, y), term(forward.h_out, y)
            losses = [*of_layers, *([] if more is None else [more])]
            given = [] if d is None else [(forward.h_out, d)]
            pairs = [*given, *guessed, *((loss, torch.ones_like(loss)) for loss in losses)]
            pairs = [(tensor, gradient) for tensor, gradient in pairs if tensor.requires_grad]
            if pairs:  # not so for a frozen first stage
                tensors, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(tensors, gradients, retain_graph=retain)
            if forward.copied:
                for weight, copy in zip(self.weights, forward.weights, strict=True):
                    if copy.grad is not None:
                        weight.grad = copy.grad if weight.grad is None else weight.grad + copy.grad
                    copy.grad = None
        self._learn(forward, step)
        self.node_loss = torch.stack(of_layers).detach().sum() if of_layers else None

    def gradients(
        self,
        forward: Pass,
        inputs: Sequence[Tensor],
        d: Tensor,
        y: Tensor | None = None,
        *,
        whole: bool = False,
        retain: bool = False,
    ) -> list[Tensor | None]:
        """Return the gradients at some inputs of a pass, given that at its output; None where it does not depend.

        With `whole` they are those of layers' own losses too.
        """
        losses = _node_losses(forward, y) if whole else []
        pairs = [(forward.h_out, d), *((loss, torch.ones_like(loss)) for loss in losses)]
        pairs = [(output, gradient) for output, gradient in pairs if output.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        outputs, gradients = zip(*pairs, strict=True)
        return list(torch.autograd.grad(outputs, inputs, gradients, retain_graph=retain, allow_unused=True))

    @property
    def quality(self) -> QualityReading | None:
        """How good the guesses at the ends of windows are, in the first layer that makes such."""
        return next((reading for layer in self.recurrent if (reading := layer.quality)), None)

    def _guess(self, forward: Pass, step: int) -> list[tuple[Tensor, Tensor]]:
        """Return what to go back from at the ends of windows."""
        if not forward.windows:
            return []
        with self.span("predict"), self._drawing(step, "boundary"):
            return [pair for layer, window in forward.windows for pair in layer.pairs(window)]

    def _learn(self, forward: Pass, step: int) -> None:
        """Learn from what came to the starts of windows."""
        if forward.windows:
            with self.span("learn"), self._drawing(step, "boundary", "learn"):
                for layer, window in forward.windows:
                    layer.learn(window)

    @property
    def _carried(self) -> list[Carried]:
        return [layer.carried for layer in self.recurrent]

    def _carry(self, carried: Sequence[Carried]) -> None:
        for layer, had in zip(self.recurrent, carried, strict=True):
            layer.carried = had

    def _windows(self) -> list[tuple[Recurrent, Window]]:
        return [(layer, window) for layer in self.recurrent if (window := layer.take_window())]

    @contextmanager
    def _as_then(self, carried: Sequence[Carried], guesses: bool) -> Generator[None]:
        """Let recurrent layers have what they had then."""
        now = self._carried
        self._carry(carried)
        for layer in self.recurrent:
            layer.guesses = guesses
        try:
            yield
        finally:
            self._carry(now)
            for layer in self.recurrent:
                layer.guesses = True

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


def _node_losses(forward: Pass, y: Tensor | None) -> list[Tensor]:
    """Return the losses of layers that have one of their own."""
    return [apply_loss(function, output, y) for function, output in forward.node_losses]
