"""A stage: a group of layers, its signal, its optimizer. The whole algorithm of one step is here.

    on Activation(t) from above:
      [1] h = group(input)                        with draws keyed by (seed, stage, t)
      [2] yield Activation(t, h)                  before the backward pass: the stage below must not wait for it
      [3] d = signal.gradient(h, label)           at once; a locked signal gives it only at [6]
      [4] backward from h with d
      [5] yield Gradient(t, d input)              what our signal says about our input, if that is learnt from
          optimizer step
    on Gradient(t) from below:
      [6] a locked signal: [4] and [5] with this gradient
      [7] its truth, if it is to be used:         see truth.py; the truth of the stage above comes of it
      [8] signal.learn(h(t), label(t), gradient)  lagged gradients refine the predictor

A stage knows no process and no clock. Its methods yield what is to be sent as soon as it can be sent; whoever
drives it sends that, and must run each of them to its end.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .answers import Answers, Asked
from .errors import MessageError, StepaheadError
from .finite import is_finite, non_finite
from .groups import Group
from .hindsight import Hindsight
from .inputs import SyntheticInput
from .intake import Intake
from .kept import Kept, KeptBatch
from .messages import Activation, Gradient, GradientKind, edge_name
from .parts import Span, no_span
from .passes import Before, Passes
from .randomness import keyed, seed_for
from .signals import Needs, Signal
from .statistics import StageStatistics
from .truth import StageTruth
from .updates import Updater

__all__ = ["NonFinitePolicy", "Stage"]

NonFinitePolicy = Literal["stop", "skip"]
CPU = torch.device("cpu")
NO_TRUTH = StageTruth()
ASKED = Asked()
NOTHING = nullcontext()


class Stage:
    """One group of a model's layers with all that it needs to train itself.

    Args:
        group: The layers.
        signal: What the group steps on.
        inputs: What it runs on instead of what comes from above: then it is given raw batches.
        updater: The group's optimizer and its learning rate schedule, or None to freeze the group.
        index: Which stage this is, counted from the one that gets the data.
        stages: How many there are.
        seed: The run's seed: draws are keyed by it, the index and the step.
        truth: What it does with the truth of a batch.
        asked: What the stage above asks of it.
        chance: Of stepping on a batch; one that is left out only passes, and with `inputs` anywhere not even that.
        unlocked: Whether stages run on synthetic inputs; the first one has the data itself.
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
        truth: StageTruth = NO_TRUTH,
        asked: Asked = ASKED,
        inputs: SyntheticInput | None = None,
        unlocked: bool = False,
        chance: float = 1.0,
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
        self.truth = truth
        self.inputs = inputs
        self.unlocked = unlocked
        self.chance = chance
        self.device = device
        self.on_non_finite: NonFinitePolicy = on_non_finite
        self.span = span
        self.step = 0
        self.skipped = 0
        self.intake = Intake(index, device, raw=inputs is not None)
        self.edge_above = self.intake.edge
        self.answers = Answers(asked, index=index, stages=stages, device=device)
        self.edge_below = edge_name(index, index + 1)
        self.kept = Kept()
        truth.check(signal)
        if updater is None:
            group.requires_grad_(False)
        self.passes = Passes(group, seed=seed, index=index, device=device, span=span)
        self._hindsight = Hindsight(
            self.passes, truth, signal, trained=updater is not None, not_finite=self._not_finite
        )
        self._repair = self._hindsight.repair

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.stages - 1

    @property
    def waits(self) -> bool:
        """Whether the group steps only when the gradient from below has come, or the error at the output."""
        return self.signal.needs in (Needs.GRADIENT, Needs.OUTPUT_ERROR)

    @property
    def is_late(self) -> bool:
        """Whether the group steps only when the truth has come, while other batches pass."""
        return self.signal.needs is Needs.TRUTH

    def step_ahead(self, activation: Activation) -> Iterator[Activation | Gradient]:
        """Run a batch forward, and unless the signal must wait, backward and through the optimizer."""
        if self.waits and self.kept:
            raise MessageError(
                f"stage {self.index} is locked: it must get the gradient of step {next(iter(self.kept))} "
                f"before the activation of step {self.step}"
            )
        h_in, label = self.intake.take(activation, self.step)
        step, self.step = self.step, self.step + 1
        absent = self._is_left_out(step)
        if self.inputs is not None:
            self.inputs.expect(h_in, step)
        if absent and self.unlocked:
            return (yield from self._leave_out(step, label))
        if self.inputs is not None:
            with self.span("predict"), keyed(self.seed, self.index, step, "inputs", device=self.device):
                h_in = self.inputs.guess(h_in).requires_grad_()
        before = self.passes.before() if self.on_non_finite == "skip" else None
        with self.span("forward"):
            graph = (not self.is_late or self.truth.keeps_graph) and not absent
            forward = self.passes.forward(h_in, step, graph=graph, copied=self._hindsight.keeps_graph(step))
        h = forward.h_out.detach()
        states = self.passes.states
        if not (finite := is_finite(h) and all(is_finite(state) for _, state in states)):
            self._not_finite(step, [("the activation from above", h_in), ("its activation", h), *states])
            h = torch.full_like(h, torch.nan)  # whatever the next layer does to infinity, the stage below is to see it
        if not self.is_last:
            yield Activation(edge=self.edge_below, step=step, tensors=(h,), label=label)
        if not finite:
            self._keep(step, None)
            yield from self._pass_over(step, h_in, before)
        elif absent:
            yield from self._let_pass(step, KeptBatch(h, label, refused=True))
        elif self.waits:
            self._keep(step, KeptBatch(h, label, forward, before=before))
        elif self.is_late:
            late = KeptBatch(h, label, forward) if graph else KeptBatch(h, label, h_in=h_in, carried=forward.carried)
            self._keep(step, late)
        else:
            yield from self._backward_and_update(step, KeptBatch(h, label, forward, before=before), None)

    def learn(self, gradient: Gradient) -> Iterator[Activation | Gradient]:
        """Use the gradient of an earlier batch: to step if that waited for it, as its truth, to refine the signal."""
        step = gradient.step
        batch = self._take(gradient)
        if self.answers.hands_up:
            yield self.answers.say(step, gradient.kind, *gradient.tensors)
        if batch is None or gradient.kind is GradientKind.NONE:
            if batch is not None and self.waits:
                yield from self._pass_by(step)
            return
        delta = gradient.tensors[0].to(self.device).contiguous()
        if not is_finite(delta):
            self._not_finite(step, [("the gradient from below", delta)])
            return (yield from self._without_gradient(step, batch))
        if self.truth.awaits(step) and gradient.kind is not GradientKind.TRUTH:
            raise MessageError(f"{self._where(step)}: a {gradient.kind} came, where the truth was due")
        if self.waits or self.is_late:
            if batch.forward is None:
                with self.span("replay"):
                    batch.forward = self.passes.again(batch.kept_input, step, batch.carried, steps=True)
            yield from self._backward_and_update(step, batch, delta, gradient.kind)
        elif self._hindsight.reruns(step):
            with self.span("replay"):
                up = self._hindsight.true_up(step, batch, delta)
            if up is not None:
                yield self.answers.say(step, GradientKind.TRUTH, up)
        if self.signal.wants(step):
            with self.span("learn"), self._drawing(step, "learn"), self._saying_where(step):
                more = [tensor.to(self.device).contiguous() for tensor in gradient.tensors[1:]]
                pull = self.signal.learn(batch.h, batch.label, delta, step, *more)
            if pull is not None:
                with self.span("replay"):
                    self._hindsight.pull(step, batch, pull)

    def hear(self, activation: Activation) -> None:
        """Learn from what came from above what the synthetic input was to be."""
        assert self.inputs is not None, "a stage that waits for its input has heard it"
        with self.span("learn"), keyed(self.seed, self.index, activation.step, "hear", device=self.device):
            self.inputs.learn(activation.tensors[0].to(self.device), activation.step)

    def finish(self) -> None:
        """Step once more, for repairs that no batch is left to carry."""
        if self._repair.is_due and self.updater is not None:
            with self.span("optimizer"):
                self._repair.join(1.0)
                self._step(self.step, self.updater)
                self.updater.clear()

    def evaluate(self, activation: Activation) -> Activation:
        """Run a batch of an evaluation, until `forget_evaluation`: in eval mode, leaving the stage as it was."""
        step, label = activation.step, None if activation.label is None else activation.label.to(self.device)
        h_out = self.passes.evaluate(activation.tensors[0].to(self.device).contiguous(), step)
        return Activation(edge=self.edge_below, step=step, tensors=(h_out,), label=label, training=False)

    @property
    def loss(self) -> Tensor | None:
        """The objective on the last batch: the signal's, or else the losses of layers' own."""
        return self.passes.node_loss if self.signal.loss is None else self.signal.loss

    @property
    def most_held(self) -> int:
        """The most that was held of what `statistics` counts."""
        return self.kept.most_bytes + self._repair.nbytes + (0 if self.inputs is None else self.inputs.most_bytes)

    def statistics(self) -> StageStatistics:
        """Return what the stage has done so far; reading it waits for the device."""
        norm = self.updater.norm if self.updater else None
        return StageStatistics(
            steps=self.step,
            loss=None if self.loss is None else float(self.loss),
            gradient_norm=None if norm is None else float(norm),
            skipped=self.skipped,
            unanswered=len(self.kept),
            held=self.kept.nbytes + self._repair.nbytes,
            quality=self.signal.quality,
            missed=None if self._hindsight.missed is None else float(self._hindsight.missed),
            inputs=None if self.inputs is None else self.inputs.quality,
            windows=self.passes.quality,
        )

    def _backward_and_update(
        self, step: int, batch: KeptBatch, waited: Tensor | None, kind: GradientKind = GradientKind.TRUTH
    ) -> Iterator[Activation | Gradient]:
        """Steps [3] to [5], with what the signal waited for, and what that is worth."""
        assert batch.forward is not None
        forward, batch.forward = batch.forward, None
        d = self._ask_signal(step, batch, waited)
        if moves := d is not None or bool(forward.node_losses):
            if self.updater is None and d is not None and not is_finite(d):
                self._not_finite(step, [("the gradient of its signal", d)])
            retain = waited is None and self._hindsight.keeps_graph(step)
            self.passes.backward(forward, d, step, batch.label, self.signal.term, retain=retain)
        owes, remains = waited is None and self.truth.owes(step), None
        if waited is None:
            remains = self._hindsight.remains(step, batch, forward, d, forward.input_gradient if owes else None)
            self._keep(step, remains)
        if not self.answers.have_use(step):
            yield from self.answers.say_nothing(step)
        elif not owes:
            # sent before the optimizer's step: a locked stage above waits for it, and will see if it is not finite
            worth = kind if self.signal.passes_truth else GradientKind.TARGET
            values = partial(self.signal.values, batch.h, batch.label)
            yield from self.answers.tell(step, worth, forward.input_gradient, d, values)
        forward.h_in.grad = None
        if (moves or self._repair.is_due) and self.updater is not None:
            with self.span("optimizer"):
                stepped = self._update(step, self.updater, d, batch.before)
            if remains is not None:
                remains.refused = not stepped
        self._end_step()

    def _without_gradient(self, step: int, batch: KeptBatch) -> Iterator[Activation | Gradient]:
        """Do without the gradient of a batch, and let the stage above know if it waits for its own."""
        if self.waits or self.is_late:
            yield from self._pass_over(step, batch.kept_input, batch.before)
        elif self.truth.owes(step):
            yield self.answers.say(step, GradientKind.TRUTH, torch.full_like(batch.kept_input, torch.nan))

    def _ask_signal(self, step: int, batch: KeptBatch, waited: Tensor | None) -> Tensor | None:
        with self._signal_span(), self._drawing(step, "signal"), self._saying_where(step):
            return self.signal.gradient(batch.h, batch.label, waited)

    def _signal_span(self) -> AbstractContextManager[None]:
        """Wrap what the signal does: the loss belongs to the forward pass, and to hand on what came is nothing."""
        if self.is_last:
            return self.span("forward")
        return NOTHING if self.signal.passes_truth else self.span("predict")

    @contextmanager
    def _saying_where(self, step: int) -> Generator[None]:
        try:
            yield
        except StepaheadError as error:
            raise type(error)(f"{self._where(step)}: {error}") from error

    def _drawing(self, step: int, purpose: str) -> AbstractContextManager[None]:
        if not self.signal.draws:
            return NOTHING
        return keyed(self.seed, self.index, step, purpose, device=self.device)

    def _update(self, step: int, updater: Updater, d: Tensor | None, before: Before | None) -> bool:
        self._repair.join()
        if self._step(step, updater, [] if d is None else [("the gradient of its signal", d)]):
            return True
        self._repair.put_back()
        self.passes.go_back(before)
        return False

    def _step(self, step: int, updater: Updater, suspects: Sequence[tuple[str, Tensor]] = ()) -> bool:
        if updater.step():
            return True
        named = [(f"the gradient of {name!r}", weight.grad) for name, weight in self.group.named_weights()]
        self._not_finite(step, [*suspects, *((what, tensor) for what, tensor in named if tensor is not None)])
        return False

    def _is_left_out(self, step: int) -> bool:
        return self.chance < 1.0 and seed_for(self.seed, self.index, step, "chance") >= self.chance * 2**63

    def _leave_out(self, step: int, label: Tensor | None) -> Iterator[Activation | Gradient]:
        """Do nothing with a batch but let the neighbours know."""
        self.passes.leave_out()
        self._forget_loss()
        if not self.is_last:
            nothing = torch.empty(0, device=self.device)
            yield Activation(edge=self.edge_below, step=step, tensors=(nothing,), label=label)
        self._keep(step, None)
        yield from self._pass_by(step)

    def _let_pass(self, step: int, batch: KeptBatch) -> Iterator[Gradient]:
        """Pass a batch on without stepping on it; the predictor still learns from its gradient."""
        self._forget_loss()
        if self.is_last:
            self._ask_signal(step, batch, None)  # for the loss
        self._keep(step, batch if not self.waits and self.signal.wants(step) else None)
        yield from self._pass_by(step)

    def _pass_by(self, step: int) -> Iterator[Gradient]:
        yield from self.answers.say_nothing(step)
        self._end_step()

    def _pass_over(self, step: int, h_in: Tensor, before: Before | None) -> Iterator[Activation | Gradient]:
        """Leave the group as it was before a batch that was not finite, and let the stage above know."""
        self.passes.go_back(before)
        self._forget_loss()
        yield from self.answers.say_not_finite(step, h_in)
        self._end_step()

    def _forget_loss(self) -> None:
        self.signal.loss = self.passes.node_loss = None

    def _end_step(self) -> None:
        if self.updater is not None:
            self.updater.clear()
            self.updater.advance()
        self.signal.end_step()

    def _keep(self, step: int, batch: KeptBatch | None) -> None:
        """Remember a batch until its gradient comes; None for one whose gradient is of no use."""
        if not self.is_last:
            self.kept.keep(step, batch)

    def _take(self, gradient: Gradient) -> KeptBatch | None:
        where = self._where(gradient.step)
        if gradient.edge != self.edge_below:
            raise MessageError(f"{where}: a gradient came for edge {gradient.edge}, not {self.edge_below}")
        return self.kept.take(
            gradient, where, shaped=self.signal.answer.has_gradient and gradient.kind is not GradientKind.NONE
        )

    def _not_finite(self, step: int, suspects: Iterable[tuple[str, Tensor]]) -> None:
        """Count a batch in which something is not finite, or raise and name the first suspect that is not."""
        self.skipped += 1
        if self.on_non_finite == "skip":
            return
        raise non_finite(f"{self._where(step)} ({self.group.title})", suspects)

    def _where(self, step: int) -> str:
        return f"stage {self.index}, step {step}"
