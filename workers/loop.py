"""The loop of a worker: it feeds its stage from the links, and sends on what the stage yields.

    links       activations_in -> [stage] -> activations_out
                  gradients_out <- [stage] <- gradients_in

    [1] take in the gradients that have come                 so that the sender below never stands still for us
    [2] let the stage learn from the oldest, when it is due  at once (free), or exactly `lag` steps later (exact)
    [3] unless something is in the way                       no room to send on; a gradient that must come first
    [4] take the next message from above                     a batch: step ahead; a mark: obey, and pass it on

A loop never waits itself. `run` is a generator that yields after each thing that it did, and the reason when it can do
nothing until something comes: whoever drives it waits then, or lets another loop have its turn.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from stepahead.pipeline import (
    Activation,
    Averages,
    Gradient,
    LagMode,
    Loss,
    Mark,
    MarkKind,
    Message,
    MessageError,
    Metric,
    Stage,
    UsageError,
    forget_evaluation,
    metrics_for,
    relayed_lag,
)

from .channels import LinkEnd, Receiver, Sender
from .spans import Spans, Wait

__all__ = ["Lag", "Links", "Loop", "Progress"]

RECENT = 10
"""Losses that are kept for a mean: one batch says little."""


@dataclass(frozen=True, slots=True)
class Lag:
    """When a stage learns from the gradient that comes back for a batch.

    In mode "free" when it comes, and never later than `most` steps: the stage then waits for it. In mode "exact"
    always after `most` steps, which makes a run reproducible to the bit. A truth that other stages pass on may take,
    or takes, longer by what those need.
    """

    mode: LagMode
    most: int

    def of(self, stage: Stage, step: int) -> int:
        """Return the most steps, or how many, until a stage learns from the gradient of a step."""
        return relayed_lag(self.most, stage.index, stage.stages) if stage.truth.awaits(step) else self.most

    def __post_init__(self) -> None:
        if self.mode not in ("exact", "free"):
            raise UsageError(f"the lag is {self.mode!r}; it must be 'exact' or 'free'")
        if self.most < 1:
            raise UsageError(f"the most steps that a gradient may lag are {self.most}; they must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """A worker's ends of its links; the first stage sends no gradients, the last one has nobody below."""

    activations_in: Receiver
    activations_out: Sender | None = None
    gradients_in: Receiver | None = None
    gradients_out: Sender | None = None

    @property
    def ends(self) -> list[LinkEnd]:
        ends = (self.activations_in, self.activations_out, self.gradients_in, self.gradients_out)
        return [end for end in ends if end is not None]


@dataclass(slots=True)
class Progress:
    """How far a worker is."""

    steps: int = 0
    samples: int = 0
    counted: int = 0
    """When the last of them was done, in nanoseconds of the machine's clock; with a GPU, when it was handed over."""
    recent: deque[Tensor] = field(default_factory=lambda: deque[Tensor](maxlen=RECENT))
    """The signal's objective on the last batches: the loss itself at the last stage."""
    lags: Counter[int] = field(default_factory=Counter[int])
    """How many gradients were learnt from after so many steps."""
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list[tuple[int, dict[str, float]]])
    """At the last stage: after how many steps, and what came out."""
    told: int = 0
    """How many of the evaluations the supervisor has heard of."""

    def count(self, rows: int) -> None:
        """Count a batch that has just been done."""
        self.steps += 1
        self.samples += rows
        self.counted = time.perf_counter_ns()

    @property
    def lag_p50(self) -> int | None:
        """The lower median of the lags."""
        passed = accumulate(self.lags[lag] for lag in sorted(self.lags))
        half = self.lags.total() / 2
        return next((lag for lag, count in zip(sorted(self.lags), passed, strict=True) if count >= half), None)

    @property
    def loss(self) -> float | None:
        """The mean of the last losses; to read it waits for the device."""
        return sum(torch.stack(tuple(self.recent)).tolist()) / len(self.recent) if self.recent else None


class Loop:
    """Drives one stage.

    Args:
        make_stage: Makes the stage once the first batch shows what it works on.
        links: The worker's ends.
        lag: When gradients are learnt from.
        spans: Times what the loop does; the stage times its own parts.
        metrics: What the last stage measures in an evaluation.
        progress: Where to note how far it is.
    """

    def __init__(
        self,
        make_stage: Callable[[Activation], Stage],
        links: Links,
        lag: Lag,
        spans: Spans,
        metrics: Mapping[str, Metric] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.links = links
        self.lag = lag
        self.stage: Stage | None = None
        self.progress = progress or Progress()
        self._senders = [end for end in (links.activations_out, links.gradients_out) if end is not None]
        self._make_stage = make_stage
        self._spans = spans
        self._metrics = metrics or {}
        self._averages: Averages | None = None
        self._unanswered: dict[int, int] = {}
        """By step, the step before which its gradient is used at the latest."""
        self._inbox: dict[int, Gradient] = {}
        self._settling = False
        self._stopping = False

    def run(self) -> Iterator[Wait | None]:
        """Work until a stop came by and all is settled; yield why there is nothing to do, or None.

        A stage settles at the marks that ask for it: each batch has its answer before the next message is taken in.
        """
        while True:
            if (gradient := self._due_gradient()) is not None:
                yield from self._learn(gradient)
                yield None
            elif self._settling and not self._unanswered:
                if self.stage is not None:
                    self.stage.finish()
                if self._stopping:
                    return
                self._settling = False
            elif (hindrance := self._hindrance()) is not None:
                yield hindrance
            elif (message := self.links.activations_in.try_receive()) is None:
                yield "wait_input"
            else:
                yield from self._handle(message)
                yield None

    @property
    def _waits(self) -> bool:
        return self.stage is not None and self.stage.waits

    def _due_gradient(self) -> Gradient | None:
        """Return the gradient to learn from now, if there is one."""
        if self.lag.mode == "free" or self._waits or self._settling:
            return self._inbox.pop(next(iter(self._inbox))) if self._inbox else self._receive_gradient(own=False)
        self._take_gradients()
        due = self._first_due()
        return None if due is None else self._inbox.pop(due, None)

    def _first_due(self) -> int | None:
        """Return the first step whose gradient must be used now."""
        return next((step for step, due in self._unanswered.items() if due <= self.progress.steps), None)

    def _take_gradients(self) -> None:
        """Take in all that have come, so that no link stays full for long."""
        while (gradient := self._receive_gradient(own=True)) is not None:
            self._inbox[gradient.step] = gradient

    def _receive_gradient(self, *, own: bool) -> Gradient | None:
        """Return the next gradient that has come; one that nobody waits for is not asked for."""
        receiver = self.links.gradients_in
        if receiver is None or len(self._inbox) == len(self._unanswered):
            return None
        message = receiver.try_receive(own=own)
        if message is None or isinstance(message, Gradient):
            return message
        raise MessageError(f"a {type(message).__name__} came up on edge {message.edge}, where gradients do")

    def _hindrance(self) -> Wait | None:
        """Return what keeps the stage from its next batch."""
        if self._unanswered and (self._settling or self._waits or self._first_due() is not None):
            return "wait_gradient"
        for sender in self._senders:
            if sender.full and not sender.gone:  # to one that is gone the next message says so
                return "wait_credit"
        return None

    def _learn(self, gradient: Gradient) -> Iterator[Wait]:
        stage = self.stage
        assert stage is not None, "a gradient is only taken in for a batch that the stage has had"
        self._spans.step = gradient.step
        del self._unanswered[gradient.step]  # before we wait for room above, and meanwhile ask for answers from below
        yield from self._send_all(stage.learn(gradient))
        if self.links.gradients_in is not None:
            self.links.gradients_in.give_back()
        if not stage.waits:
            self.progress.lags[self.progress.steps - gradient.step] += 1

    def _handle(self, message: Message) -> Iterator[Wait]:
        if isinstance(message, Activation):
            if self.stage is None:
                self.stage = self._make_stage(message)
            yield from (
                self._step_ahead(self.stage, message) if message.training else self._evaluate(self.stage, message)
            )
        elif isinstance(message, Mark):
            yield from self._obey(message)
        else:
            raise MessageError(f"a {type(message).__name__} came down on edge {message.edge}, where batches do")

    def _step_ahead(self, stage: Stage, batch: Activation) -> Iterator[Wait]:
        self._spans.step = batch.step
        yield from self._send_all(stage.step_ahead(batch))
        if not stage.is_last:
            self._unanswered[batch.step] = batch.step + self.lag.of(stage, batch.step)
        self.progress.count(len(batch.tensors[0]))
        if stage.loss is not None:
            self.progress.recent.append(stage.loss)

    def _evaluate(self, stage: Stage, batch: Activation) -> Iterator[Wait]:
        with self._spans("evaluate"):
            output = stage.evaluate(batch)
            if stage.is_last:
                self._judge(stage, output)
        if not stage.is_last:
            yield from self._send(output)

    def _judge(self, stage: Stage, output: Activation) -> None:
        if self._averages is None:
            assert isinstance(stage.signal, Loss), "the last of all stages steps on the loss"
            self._averages = Averages(stage.signal.measure, metrics_for(stage.group, self._metrics))
        self._averages.add(output.tensors[0], output.label)

    def _obey(self, mark: Mark) -> Iterator[Wait]:
        if mark.kind in (MarkKind.SETTLE, MarkKind.STOP):
            self._settling = True
            self._stopping = mark.kind is MarkKind.STOP
        elif mark.kind is MarkKind.EVALUATE and self.stage is not None:
            forget_evaluation(self.stage.group)
            if self._averages is not None:
                self.progress.evaluations.append((mark.step + 1, self._averages.take()))
        below = self.links.activations_out
        if below is not None:
            yield from self._send(Mark(edge=below.edge, step=mark.step, kind=mark.kind))

    def _send_all(self, messages: Iterator[Activation | Gradient]) -> Iterator[Wait]:
        for message in messages:
            yield from self._send(message)

    def _send(self, message: Message) -> Iterator[Wait]:
        sender = self.links.gradients_out if isinstance(message, Gradient) else self.links.activations_out
        assert sender is not None, f"nobody is there for a {type(message).__name__} on edge {message.edge}"
        while not self._sent(sender, message):
            self._take_gradients()  # the other side may stand before a full link of its own
            yield "wait_credit"

    def _sent(self, sender: Sender, message: Message) -> bool:
        with self._spans("send"):
            return sender.try_send(message)
