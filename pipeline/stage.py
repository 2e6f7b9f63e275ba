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
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .errors import CutError, LabelError, MessageError, NonFiniteError
from .finite import are_finite, count_non_finite, is_finite
from .groups import Group
from .messages import Activation, Gradient, GradientKind, Message, TensorSpec, edge_name
from .quality import QualityReading
from .randomness import keyed
from .signals import Needs, Signal

__all__ = ["NO_SPAN", "NonFinitePolicy", "Span", "Stage", "StageStatistics"]

NonFinitePolicy = Literal["stop", "skip"]
NORM_EVERY = 16
"""The norm of the gradient is measured on every so many steps, or on all where it is clipped."""
NO_SPAN = nullcontext()
Span = Callable[[str], AbstractContextManager[None]]
"""Wraps the parts of a step, so that whoever drives the stage can time them."""


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
    """Batches passed over because something in them was not finite."""
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


class Stage:
    """One group of a model's layers with all that it needs to train itself.

    Args:
        group: The layers.
        signal: What the group steps on.
        optimizer: The group's optimizer, or None to leave its weights as they are.
        schedule: A learning rate schedule for it.
        clip: The most that the norm of the group's gradient may be.
        index: Which stage this is, counted from the one that gets the data.
        stages: How many there are.
        seed: The run's seed: draws are keyed by it, the index and the step.
        on_non_finite: What NaN or infinity does: "stop" raises, "skip" passes the batch over.
        span: Wraps the parts of a step.
    """

    def __init__(
        self,
        group: Group,
        signal: Signal,
        optimizer: Optimizer | None,
        *,
        schedule: LRScheduler | None = None,
        clip: float | None = None,
        index: int = 0,
        stages: int = 1,
        seed: int = 0,
        device: torch.device | None = None,
        on_non_finite: NonFinitePolicy = "stop",
        span: Span = lambda name: NO_SPAN,
    ) -> None:
        self.group = group
        self.signal = signal
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip = clip
        self.index = index
        self.stages = stages
        self.seed = seed
        self.device = device or torch.device("cpu")
        self.on_non_finite: NonFinitePolicy = on_non_finite
        self.span = span
        self.step = 0
        self.skipped = 0
        self.above = edge_name(index - 1, index)
        self.below = edge_name(index, index + 1)
        self._kept: dict[int, _Batch | None] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._norm: Tensor | None = None
        if optimizer is None:
            group.requires_grad_(False)
        self._trained = [weight for weight in group.parameters() if weight.requires_grad]

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

    def step_ahead(self, activation: Activation) -> Iterator[Message]:
        """Run a batch forward, and unless the signal must wait, backward and through the optimizer."""
        self._check_turn(activation)
        h_in, label = self._receive(activation)
        step, self.step = self.step, self.step + 1
        buffers = self._copy_buffers()
        h_out = self._forward(h_in, step)
        h = h_out.detach()
        sound = is_finite(h)
        if not sound:
            self._not_finite(step, [("the activation from above", h_in), ("its activation", h)])
        if not self.is_last:
            yield Activation(edge=self.below, step=step, tensors=(h,), label=label)
        if not sound:
            self._restore_buffers(buffers)
            self._keep(step, None)
            yield from self._pass_over(step, h_in)
        elif self.waits:
            self._keep(step, _Batch(h, label, (h_in, h_out)))
        else:
            self._keep(step, _Batch(h, label, None) if self.signal.wants(step) else None)
            d = self._ask_signal(step, h, label, None)
            yield from self._descend(step, d, h_in, h_out, label, GradientKind.TRUTH)

    def learn(self, gradient: Gradient) -> Iterator[Message]:
        """Use the gradient of an earlier batch: to refine the signal, and to step if that waited for it."""
        step = gradient.step
        batch = self._take(gradient)
        if batch is None:
            return
        delta = gradient.tensors[0].to(self.device)
        if not is_finite(delta):
            self._not_finite(step, [("the gradient from below", delta)])
            if batch.graph:
                yield from self._pass_over(step, batch.graph[0])
            return
        if batch.graph:
            d = self._ask_signal(step, batch.h, batch.label, delta)
            yield from self._descend(step, d, *batch.graph, batch.label, gradient.kind)
            batch.graph = None
        if self.signal.wants(step):
            with self.span("learn"):
                self.signal.learn(batch.h, batch.label, delta, step)

    def evaluate(self, activation: Activation) -> Activation:
        """Run a batch of an evaluation: in eval mode, without a graph, leaving the stage as it was."""
        h_in = activation.tensors[0].to(self.device)
        h_out = self._forward_only(h_in, activation.step)
        return Activation(
            edge=self.below, step=activation.step, tensors=(h_out,), label=activation.label, training=False
        )

    def statistics(self) -> StageStatistics:
        """Return what the stage has done so far; reading it waits for the device."""
        return StageStatistics(
            steps=self.step,
            loss=None if self.signal.loss is None else float(self.signal.loss),
            gradient_norm=None if self._norm is None else float(self._norm),
            skipped=self.skipped,
            unanswered=len(self._kept),
            quality=self.signal.quality,
        )

    def _descend(
        self, step: int, d: Tensor | None, h_in: Tensor, h_out: Tensor, label: Tensor | None, kind: GradientKind
    ) -> Iterator[Message]:
        """Steps [4] and [5]: backward from the output with `d`, made of a gradient of that kind."""
        if d is not None:
            with self.span("backward"):
                self._backward(h_out, label, d)
        if not self.is_first:
            above = torch.zeros_like(h_in) if h_in.grad is None else h_in.grad
            # sent before the optimizer's step: a locked stage above waits for it, and will see if it is not finite
            yield self._gradient(step, above, kind if self.signal.passes_truth else GradientKind.TARGET)
        if d is not None:
            with self.span("optimizer"):
                self._update(step, d)

    def _forward(self, h_in: Tensor, step: int) -> Tensor:
        version = h_in._version
        with self.span("forward"), keyed(self.seed, self.index, step, device=self.device):
            try:
                h_out: Tensor = self.group(h_in)
            except RuntimeError as error:
                if "leaf Variable that requires grad" in str(error):
                    raise self._changed_in_place() from error
                raise
        if h_in._version != version:
            raise self._changed_in_place()
        return h_out

    def _forward_only(self, h_in: Tensor, step: int) -> Tensor:
        modes = [(module, module.training) for module in self.group.modules()]
        self.group.eval()
        try:
            with torch.no_grad(), keyed(self.seed, self.index, step, "evaluate", device=self.device):
                h_out: Tensor = self.group(h_in)
                return h_out
        finally:
            for module, mode in modes:
                module.training = mode

    def _ask_signal(self, step: int, h: Tensor, label: Tensor | None, waited: Tensor | None) -> Tensor | None:
        with self.span("backward" if self.signal.passes_truth else "predict"):
            try:
                return self.signal.gradient(h, label, waited)
            except LabelError as error:
                raise LabelError(f"{self._where(step)}: {error}") from error

    def _backward(self, h_out: Tensor, label: Tensor | None, d: Tensor) -> None:
        term = self.signal.term(h_out, label)
        if term is not None:
            torch.autograd.backward([h_out, term], [d, torch.ones_like(term)])
        elif h_out.requires_grad:  # not so for a frozen first stage
            torch.autograd.backward(h_out, d)

    def _update(self, step: int, d: Tensor) -> None:
        if self.optimizer is None:
            return
        gradients = [gradient for weight in self._trained if (gradient := weight.grad) is not None]
        if self.clip is not None or step % NORM_EVERY == 0:
            self._norm = nn.utils.get_total_norm(gradients)
        if not are_finite(gradients):
            named = [(f"the gradient of {name!r}", weight.grad) for name, weight in self.group.named_weights()]
            suspects = [(what, tensor) for what, tensor in named if tensor is not None]
            self._not_finite(step, [("the gradient of its signal", d), *suspects])
        else:
            if self.clip is not None and self._norm is not None:
                nn.utils.clip_grads_with_norm_(self._trained, self.clip, self._norm)
            self.optimizer.step()
        self._end_step()

    def _pass_over(self, step: int, h_in: Tensor) -> Iterator[Message]:
        """Leave the group as it was before a batch that was not finite, and let the stage above know."""
        if not self.is_first:
            yield self._gradient(step, torch.full_like(h_in, torch.nan), GradientKind.TARGET)
        self._end_step()

    def _end_step(self) -> None:
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        if self.schedule is not None:
            self.schedule.step()

    def _check_turn(self, activation: Activation) -> None:
        if activation.edge != self.above:
            raise MessageError(f"stage {self.index} listens on edge {self.above}; a message came for {activation.edge}")
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
            if label.dim() and len(label) != len(tensor):
                raise MessageError(f"{self._where(step)}: the batch has {len(tensor)} samples, its label {len(label)}")
            try:
                self.signal.check_label(label)
            except LabelError as error:
                raise LabelError(f"{self._where(step)}: {error}") from None
            label = label.to(self.device)
        h_in = tensor.to(self.device).detach()
        if not self.is_first:
            if not h_in.is_floating_point():
                where = self._where(activation.step)
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
        if gradient.edge != self.below:
            raise MessageError(f"{where}: a gradient came for edge {gradient.edge}, not {self.below}")
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
        what, tensor = next(suspect for suspect in suspects if not is_finite(suspect[1]))
        raise NonFiniteError(
            f"{self._where(step)} ({self.group.title}): {what} has {count_non_finite(tensor)} of {tensor.numel()} "
            f"values NaN or infinite; lower the learning rate, clip, or skip such batches"
        )

    def _gradient(self, step: int, tensor: Tensor, kind: GradientKind) -> Gradient:
        return Gradient(edge=self.above, step=step, tensors=(tensor,), kind=kind)

    def _where(self, step: int) -> str:
        return f"stage {self.index}, step {step}"

    def _changed_in_place(self) -> CutError:
        return CutError(
            f"stage {self.index} ({self.group.title}) changes its input in place, which others still need; "
            f"make its first layer work out of place, for example nn.ReLU(inplace=False)"
        )

    def _copy_buffers(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.group.buffers()] if self.on_non_finite == "skip" else []

    def _restore_buffers(self, copies: list[Tensor]) -> None:
        for buffer, copy in zip(self.group.buffers(), copies, strict=True):
            buffer.copy_(copy)
