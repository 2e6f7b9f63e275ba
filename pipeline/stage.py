"""A stage: a group of layers, its signal, its optimizer. The whole algorithm of one step is here.

    on Activation(t) from above:
      [1] h = group(input)                        with draws keyed by (seed, stage, t)
      [2] yield Activation(t, h)                  before the backward pass: the stage below must not wait for it
      [3] d = signal.gradient(h, label)           at once; a locked signal gives it only at [6]
      [4] backward from h with d
      [5] yield Gradient(t, d input)              what our signal says about our input: the stage above learns from it
          optimizer step
    on Gradient(t) from below:
      [6] a locked signal: [4] and [5] with this gradient
      [7] signal.learn(h(t), label(t), gradient)  lagged gradients refine the predictor

A stage knows no process and no clock. Its methods yield what is to be sent as soon as it can be sent; whoever
drives it sends that, and must run each of them to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .errors import CutError, MessageError, NonFiniteError, StepaheadError, UsageError
from .finite import count_non_finite, is_finite
from .groups import Group, evaluating
from .messages import Activation, Gradient, GradientKind, TensorSpec, edge_name
from .quality import QualityReading
from .randomness import keyed
from .signals import Needs, Signal
from .updates import Updater

__all__ = ["TAX", "USEFUL", "NonFinitePolicy", "Part", "Span", "Stage", "StageStatistics", "no_span"]

NonFinitePolicy = Literal["stop", "skip"]
Part = Literal["forward", "predict", "backward", "optimizer", "learn"]
Span = Callable[[Part], AbstractContextManager[None]]
"""Wraps the parts of a step, so that whoever drives the stage can time them. On a GPU it sees work being queued."""
USEFUL: tuple[Part, ...] = ("forward", "backward", "optimizer")
"""The parts of a step that plain backprop has too."""
TAX: tuple[Part, ...] = ("predict", "learn")
"""The parts that are the price of not waiting."""
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatistics:
    """What a stage has done so far."""

    steps: int
    """Batches that have come in."""
    loss: float | None
    """The signal's objective on the last batch: the loss itself at the last stage."""
    gradient_norm: float | None
    """Length of the group's gradient when it was last measured, before clipping."""
    skipped: int
    """Batches in which something was not finite, so that the group did not step, or the signal did not learn."""
    unanswered: int
    """Batches whose gradient has not come back yet."""
    quality: QualityReading | None
    """How good the signal's guesses are."""


@dataclass(slots=True)
class _Batch:
    """What a batch leaves behind until its gradient comes."""

    h: Tensor
    """The group's output, detached."""
    label: Tensor | None
    graph: tuple[Tensor, Tensor] | None
    """The group's input and output, attached: while the group has not stepped on them."""
    buffers: list[Tensor]
    """Copies of the group's buffers from before the batch, to go back to."""


def no_span(part: Part) -> AbstractContextManager[None]:
    """Time nothing."""
    return _NOTHING


_NOTHING = nullcontext()


class Stage:
    """One group of a model's layers with all that it needs to train itself.

    Args:
        group: The layers.
        signal: What the group steps on.
        updater: The group's optimizer and its learning rate schedule, or None to freeze the group.
        index: Which stage this is, counted from the one that gets the data.
        stages: How many there are.
        seed: The run's seed: draws are keyed by it, the index and the step.
        device: Where the group is.
        on_non_finite: What NaN or infinity does: "stop" raises, "skip" passes the batch over.
        span: Wraps the parts of a step.
    """

    def __init__(
        self,
        group: Group,
        signal: Signal,
        updater: Updater | None,
        *,
        index: int = 0,
        stages: int = 1,
        seed: int = 0,
        device: torch.device = CPU,
        on_non_finite: NonFinitePolicy = "stop",
        span: Span = no_span,
    ) -> None:
        self.group = group
        self.signal = signal
        self.updater = updater
        self.index = index
        self.stages = stages
        self.seed = seed
        self.device = device
        self.on_non_finite: NonFinitePolicy = on_non_finite
        self.span = span
        self.step = 0
        self.skipped = 0
        self.edge_above = edge_name(index - 1, index)
        self.edge_below = edge_name(index, index + 1)
        self._kept: dict[int, _Batch | None] = {}
        self._specs: dict[str, TensorSpec] = {}
        if signal.needs is Needs.OUTPUT_ERROR:
            raise UsageError(f"{type(signal).__name__} needs {signal.needs.value}, which nothing sends to a stage")
        if updater is None:
            group.requires_grad_(False)

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.stages - 1

    @property
    def waits(self) -> bool:
        """Whether the group steps only when the gradient from below has come."""
        return self.signal.needs is Needs.GRADIENT

    def step_ahead(self, activation: Activation) -> Iterator[Activation | Gradient]:
        """Run a batch forward, and unless the signal must wait, backward and through the optimizer."""
        self._check_turn(activation)
        h_in, label = self._receive(activation)
        step, self.step = self.step, self.step + 1
        buffers = self._copy_buffers()
        h_out = self._forward(h_in, step)
        h = h_out.detach()
        if not is_finite(h):
            self._not_finite(step, [("the activation from above", h_in), ("its activation", h)])
            h = torch.full_like(h, torch.nan)  # whatever the next layer does to infinity, the stage below is to see it
            if not self.is_last:
                yield Activation(edge=self.edge_below, step=step, tensors=(h,), label=label)
            self._keep(step, None)
            yield from self._pass_over(step, h_in, buffers)
            return
        if not self.is_last:
            yield Activation(edge=self.edge_below, step=step, tensors=(h,), label=label)
        batch = _Batch(h, label, (h_in, h_out), buffers)
        if self.waits:
            self._keep(step, batch)
        else:
            self._keep(step, _Batch(h, label, None, []) if self.signal.wants(step) else None)
            yield from self._backward_and_update(step, batch, None, GradientKind.TRUTH)

    def learn(self, gradient: Gradient) -> Iterator[Activation | Gradient]:
        """Use the gradient of an earlier batch: to refine the signal, and to step if that waited for it."""
        step = gradient.step
        batch = self._take(gradient)
        if batch is None:
            return
        delta = gradient.tensors[0].to(self.device).contiguous()
        if not is_finite(delta):
            self._not_finite(step, [("the gradient from below", delta)])
            if batch.graph:
                yield from self._pass_over(step, batch.graph[0], batch.buffers)
            return
        if batch.graph:
            yield from self._backward_and_update(step, batch, delta, gradient.kind)
        if self.signal.wants(step):
            with self.span("learn"), self._drawing(step, "learn"):
                self.signal.learn(batch.h, batch.label, delta, step)

    def evaluate(self, activation: Activation) -> Activation:
        """Run a batch of an evaluation: in eval mode, without a graph, leaving the stage as it was."""
        step, label = activation.step, activation.label
        h_in = activation.tensors[0].to(self.device).contiguous()
        with evaluating(self.group), keyed(self.seed, self.index, step, "evaluate", device=self.device):
            h_out = self._run_group(h_in)
        label = None if label is None else label.to(self.device)
        return Activation(edge=self.edge_below, step=step, tensors=(h_out,), label=label, training=False)

    def statistics(self) -> StageStatistics:
        """Return what the stage has done so far; reading it waits for the device."""
        norm = self.updater.norm if self.updater else None
        return StageStatistics(
            steps=self.step,
            loss=None if self.signal.loss is None else float(self.signal.loss),
            gradient_norm=None if norm is None else float(norm),
            skipped=self.skipped,
            unanswered=len(self._kept),
            quality=self.signal.quality,
        )

    def _backward_and_update(
        self, step: int, batch: _Batch, waited: Tensor | None, kind: GradientKind
    ) -> Iterator[Activation | Gradient]:
        """Steps [3] to [5], with what the signal waited for, and what that is worth."""
        assert batch.graph is not None
        (h_in, h_out), batch.graph = batch.graph, None
        d = self._ask_signal(step, batch, waited)
        if d is not None:
            if self.updater is None and not is_finite(d):
                self._not_finite(step, [("the gradient of its signal", d)])
            with self.span("backward"):
                self._backward(h_out, batch.label, d)
        if not self.is_first:
            up = torch.zeros_like(h_in) if h_in.grad is None else h_in.grad
            # sent before the optimizer's step: a locked stage above waits for it, and will see if it is not finite
            yield self._gradient(step, up, kind if self.signal.passes_truth else GradientKind.TARGET)
        if d is not None and self.updater is not None:
            with self.span("optimizer"):
                self._update(step, self.updater, d, batch.buffers)
        self._end_step()

    def _forward(self, h_in: Tensor, step: int) -> Tensor:
        with self.span("forward"), keyed(self.seed, self.index, step, device=self.device):
            return self._run_group(h_in)

    def _run_group(self, h_in: Tensor) -> Tensor:
        version = h_in._version
        try:
            h_out: Tensor = self.group(h_in)
        except RuntimeError as error:
            if "leaf Variable that requires grad" in str(error):
                raise self._changed_in_place() from error
            error.add_note(f"in stage {self.index} ({self.group.title}), on an input {TensorSpec.of(h_in)}")
            raise
        if h_in._version != version:
            raise self._changed_in_place()
        return h_out

    def _ask_signal(self, step: int, batch: _Batch, waited: Tensor | None) -> Tensor | None:
        with self.span("backward" if self.signal.passes_truth else "predict"), self._drawing(step, "signal"):
            try:
                self.signal.check_label(batch.h, batch.label)
                return self.signal.gradient(batch.h, batch.label, waited)
            except StepaheadError as error:
                raise type(error)(f"{self._where(step)}: {error}") from error

    def _drawing(self, step: int, purpose: str) -> AbstractContextManager[None]:
        if not self.signal.draws:
            return _NOTHING
        return keyed(self.seed, self.index, step, purpose, device=self.device)

    def _backward(self, h_out: Tensor, label: Tensor | None, d: Tensor) -> None:
        term = self.signal.term(h_out, label)
        attached = [(h_out, d)] if term is None else [(h_out, d), (term, torch.ones_like(term))]
        attached = [(tensor, gradient) for tensor, gradient in attached if tensor.requires_grad]
        if attached:  # not so for a frozen first stage
            tensors, gradients = zip(*attached, strict=True)
            torch.autograd.backward(tensors, gradients)

    def _update(self, step: int, updater: Updater, d: Tensor, buffers: list[Tensor]) -> None:
        if not updater.step():
            named = [(f"the gradient of {name!r}", weight.grad) for name, weight in self.group.named_weights()]
            suspects = [(what, tensor) for what, tensor in named if tensor is not None]
            self._not_finite(step, [("the gradient of its signal", d), *suspects])
            self._restore_buffers(buffers)

    def _pass_over(self, step: int, h_in: Tensor, buffers: list[Tensor]) -> Iterator[Activation | Gradient]:
        """Leave the group as it was before a batch that was not finite, and let the stage above know."""
        self._restore_buffers(buffers)
        self.signal.loss = None
        if not self.is_first:
            yield self._gradient(step, torch.full_like(h_in, torch.nan), GradientKind.TARGET)
        self._end_step()

    def _end_step(self) -> None:
        if self.updater is not None:
            self.updater.clear()
            self.updater.advance()
        self.signal.end_step()

    def _check_turn(self, activation: Activation) -> None:
        if activation.edge != self.edge_above:
            raise MessageError(
                f"stage {self.index} listens on edge {self.edge_above}; a message came for {activation.edge}"
            )
        if not activation.training:
            raise MessageError(f"stage {self.index} got a batch of an evaluation to train on; use evaluate()")
        if len(activation.tensors) != 1:
            raise MessageError(f"stage {self.index} takes one tensor a batch, got {len(activation.tensors)}")
        if activation.tensors[0].numel() == 0:
            raise MessageError(f"stage {self.index}, step {activation.step}: the batch is empty")
        if activation.step != self.step:
            raise MessageError(f"stage {self.index} waits for step {self.step}, got step {activation.step}")
        if self.waits and self._kept:
            raise MessageError(
                f"stage {self.index} is locked: it must get the gradient of step {next(iter(self._kept))} "
                f"before the activation of step {self.step}"
            )

    def _receive(self, activation: Activation) -> tuple[Tensor, Tensor | None]:
        """Return the batch and its label on the stage's device, the batch ready to collect its gradient."""
        tensor, label, step = activation.tensors[0], activation.label, activation.step
        self._check_spec("the activation from above", tensor, step)
        if label is not None:
            self._check_spec("the label", label, step)
            label = label.to(self.device).contiguous()
        h_in = tensor.to(self.device).detach().contiguous()  # as a link would deliver it
        if not self.is_first:
            if not h_in.is_floating_point():
                where = self._where(step)
                raise CutError(f"{where}: a {h_in.dtype} comes over the cut, and no gradient goes back; cut elsewhere")
            h_in.requires_grad_()
        return h_in, label

    def _check_spec(self, what: str, tensor: Tensor, step: int) -> None:
        spec = self._specs.get(what)
        if spec is None:
            self._specs[what] = TensorSpec.of(tensor)
        elif not spec.admits(tensor):
            raise MessageError(f"{self._where(step)}: {what} is {TensorSpec.of(tensor)}, the first one was {spec}")

    def _keep(self, step: int, batch: _Batch | None) -> None:
        """Remember a batch until its gradient comes; None for one whose gradient is of no use."""
        if not self.is_last:
            self._kept[step] = batch

    def _take(self, gradient: Gradient) -> _Batch | None:
        where = self._where(gradient.step)
        if gradient.edge != self.edge_below:
            raise MessageError(f"{where}: a gradient came for edge {gradient.edge}, not {self.edge_below}")
        if gradient.step not in self._kept:
            raise MessageError(f"{where}: a gradient came, but no batch of that step waits for one")
        batch = self._kept[gradient.step]
        if batch is not None and TensorSpec.of(gradient.tensors[0]) != TensorSpec.of(batch.h):
            came, due = TensorSpec.of(gradient.tensors[0]), TensorSpec.of(batch.h)
            raise MessageError(f"{where}: the gradient from below is {came}, the activation was {due}")
        del self._kept[gradient.step]
        return batch

    def _not_finite(self, step: int, suspects: Iterable[tuple[str, Tensor]]) -> None:
        """Count a batch in which something is not finite, or raise and name the first suspect that is not."""
        self.skipped += 1
        if self.on_non_finite == "skip":
            return
        wrong = (suspect for suspect in suspects if not is_finite(suspect[1]))
        what, tensor = next(wrong, ("the sum of its gradients", torch.tensor(torch.inf)))
        raise NonFiniteError(
            f"{self._where(step)} ({self.group.title}): {what} has {count_non_finite(tensor)} of {tensor.numel()} "
            f"values NaN or infinite; lower the learning rate, clip, or skip such batches"
        )

    def _gradient(self, step: int, tensor: Tensor, kind: GradientKind) -> Gradient:
        return Gradient(edge=self.edge_above, step=step, tensors=(tensor,), kind=kind)

    def _where(self, step: int) -> str:
        return f"stage {self.index}, step {step}"

    def _changed_in_place(self) -> CutError:
        return CutError(
            f"stage {self.index} ({self.group.title}) changes its input in place, which others still need; "
            f"make the layer that does it work out of place, for example nn.ReLU(inplace=False)"
        )

    def _copy_buffers(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.group.buffers()] if self.on_non_finite == "skip" else []

    def _restore_buffers(self, copies: list[Tensor]) -> None:
        for buffer, copy in zip(self.group.buffers(), copies, strict=False):  # no copies unless batches are skipped
            buffer.copy_(copy)
