"""Training under the locked schedules of torch.distributed.pipelining, over the same layers, loss, optimizer and data.

    data --batch--> 0 --label--> 1 --label--> ..      over our links, in band with the marks
    0 <--activations, gradients--> 1 <--> ..          by torch's schedule, over a process group

The batch comes to the first stage; what goes down our links behind it is its label, which the stage with the last
group needs, and by which the others know that a batch begins. The stages then go through torch's schedule together.
Torch fixes all shapes at the first step; so an evaluation, whose batches may be longer, goes from group to group.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stepahead.pipeline import (
    Activation,
    Averages,
    LinkTimeoutError,
    Loss,
    Mark,
    MarkKind,
    Message,
    MessageError,
    Metric,
    Part,
    PeerGoneError,
    StepaheadError,
    UsageError,
    groups_a_stage,
    keyed,
    metrics_for,
    owner_of,
)
from stepahead.pipeline.groups import evaluating
from stepahead.pipeline.signals import apply_loss

from .delays import DueTimes
from .locked_stage import LockedStage
from .loop import Links, Progress
from .spans import SpanName, Spans, Wait
from .wire import CODES, DTYPES

__all__ = ["LockedLoop", "is_available"]

CLASSES = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved-1f1b": "ScheduleInterleaved1F1B",
    "interleaved-zb": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
}
MOST_OFF = 0.05
"""Share by which the loss of a batch may differ from the mean over its micro-batches: BatchNorm makes some, ignored
places too."""
MOST_FORM = 18
"""Numbers that say what a tensor is like: its dtype, how many sizes, and up to sixteen of those."""
METHODS: dict[str, tuple[Part, Wait | None]] = {
    "forward_one_chunk": ("forward", "wait_input"),
    "backward_one_chunk": ("backward", "wait_gradient"),
    "backward_weight_one_chunk": ("backward", None),
}
"""What torch calls for each micro-batch: the part of a step that it is, and what a stage waited for before it."""


def is_available() -> bool:
    """Return whether this torch has the schedules as they are used here."""
    return tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 13)


class LockedLoop:
    """Drives one stage; as a `Loop` it never waits itself but inside torch's schedule.

    Args:
        stage: The groups.
        schedule: Its name.
        microbatches: Into how many a batch is cut.
        links: The worker's ends; gradients go other ways.
        spans: Times what is done.
        part: Wraps a part of a step, and the share of the stage's batch that it is; times it too.
        metrics: What is measured in an evaluation, at the stage with the last group.
        progress: Where to note how far it is.
        begin: Called with the first batch, before anything is run.
        ready: Called when all is prepared, before the first batch that counts.
        inputs_share: Of a backward pass, what the gradient of the input takes where the schedule splits it.
        delays: What makes torch's ways between stages slow, if anything.
    """

    def __init__(
        self,
        stage: LockedStage,
        schedule: str,
        microbatches: int,
        links: Links,
        spans: Spans,
        *,
        part: Callable[[Part, float], AbstractContextManager[None]] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        progress: Progress | None = None,
        begin: Callable[[Activation], None] = lambda batch: None,
        ready: Callable[[], None] = lambda: None,
        inputs_share: float = 0.5,
        delays: DueTimes | None = None,
    ) -> None:
        self.links = links
        self.stage = stage
        self.progress = progress or Progress()
        self._schedule, self._microbatches = schedule, microbatches
        self._spans = spans
        self._part = part or (lambda name, share: spans(name))
        self._delays, self._inputs_share = delays, inputs_share
        self._begin, self._ready = begin, ready
        self._averages = Averages(Loss(stage.loss).measure, metrics_for(stage.placed[-1].group, metrics or {}))
        self._made: dict[int, Any] = {}
        """By the length of their batches."""
        self._owner = partial(owner_of, schedule, stages=stage.placed[0].of // groups_a_stage(schedule))
        self._labelled = True
        self._since = 0

    def run(self) -> Iterator[Wait | None]:
        """Work until a stop came by; yield why there is nothing to do, or None."""
        while True:
            below = self.links.activations_out
            if below is not None and below.full and not below.gone:
                yield "wait_credit"
                continue
            message = self.links.activations_in.try_receive()
            if message is None:
                yield "wait_input"
                continue
            yield from self._pass_on(message)
            if isinstance(message, Activation):
                self._spans.step = message.step
                with _together():
                    (self._train if message.training else self._evaluate)(message)
            elif isinstance(message, Mark):
                if message.kind is MarkKind.STOP:
                    return
                self._obey(message)
            else:
                raise MessageError(f"a {type(message).__name__} came down on edge {message.edge}, where batches do")
            yield None

    def _pass_on(self, message: Message) -> Iterator[Wait]:
        """Let the stage below know: of a batch it gets the label."""
        below = self.links.activations_out
        if below is None:
            return
        if isinstance(message, Activation):
            blank = torch.zeros(len(message.tensors[0]), dtype=torch.bool)  # as many rows, for what torch sends itself
            sent: Message = replace(message, edge=below.edge, tensors=(blank,))
        else:
            sent = replace(message, edge=below.edge)
        while not below.try_send(sent):
            yield "wait_credit"

    def _train(self, batch: Activation) -> None:
        rows = len(batch.tensors[0])
        schedule = self._made.get(rows) or self._prepare(batch)
        self._since = self._spans.now()
        losses: list[Tensor] = []
        with keyed(self.stage.recipe.seed, self.stage.placed[0].index, batch.step, device=self.stage.device):
            self._step(schedule, batch, losses)
        self._note_gap("send")
        with self._part("optimizer", 1.0):
            self.stage.update(batch.step)
        self.progress.count(rows)
        if losses:
            self.progress.recent.append(torch.stack(losses).mean().detach())

    def _prepare(self, batch: Activation) -> Any:
        """Return a schedule for batches of this length; torch tries a batch first, and nothing of that is left."""
        rows = len(batch.tensors[0])
        first = not self._made
        schedule = self._made[rows] = self._make(rows)
        if first:
            self._begin(batch)
        buffers = [(buffer, buffer.clone()) for each in self.stage.placed for buffer in each.group.buffers()]
        losses: list[Tensor] = []
        with keyed(self.stage.recipe.seed, "try", device=self.stage.device):
            output = self._step(schedule, batch, losses, returns=True)
        if losses:
            self._check_loss(output, batch, losses)
        for buffer, before in buffers:
            buffer.copy_(before)
        self.stage.clear()
        for stage in _stages_of(schedule):
            self._time(stage)
            if self._delays is not None:
                self._delays.watch(stage)
        if first:
            self._ready()
        return schedule

    def _evaluate(self, batch: Activation) -> None:
        """Go through a batch of an evaluation, group after group: of any length, for torch's schedules fix it."""
        with self._spans("evaluate"), torch.no_grad():
            h = batch.tensors[0].to(self.stage.device)
            for each in self.stage.placed:
                above, below = self._owner(each.index - 1), self._owner(each.index + 1)
                if above not in (None, self._owner(each.index)):
                    h = _receive(above, self.stage.device)
                with evaluating(each.group):
                    h = each.group(h)
                if below not in (None, self._owner(each.index)):
                    _send(h, below)
            if self.stage.has_loss:
                self._averages.add(h, None if batch.label is None else batch.label.to(self.stage.device))

    def _obey(self, mark: Mark) -> None:
        if mark.kind is MarkKind.EVALUATE and self.stage.has_loss:
            self.progress.evaluations.append((self.progress.steps, self._averages.take()))

    @property
    def _is_first(self) -> bool:
        return self.stage.placed[0].index == 0

    def _check_loss(self, output: Tensor, batch: Activation, losses: list[Tensor]) -> None:
        """Refuse a loss that is not about the mean over a batch's samples: torch takes the mean over micro-batches."""
        label = None if batch.label is None else batch.label.to(self.stage.device)
        whole = float(apply_loss(self.stage.loss, output.detach(), label))
        mean = float(torch.stack(losses).detach().mean())
        if abs(whole - mean) > MOST_OFF * abs(whole):
            raise UsageError(
                f"the loss of a batch is {whole:.4g}, and the mean over its {len(losses)} micro-batches is {mean:.4g}: "
                f"under {self._schedule} the loss must be a mean over the samples"
            )

    def _step(self, schedule: Any, batch: Activation, losses: list[Tensor], *, returns: bool = False) -> Any:
        given = [batch.tensors[0].to(self.stage.device)] if self._is_first else []
        label = batch.label
        self._labelled = label is not None
        if not self.stage.has_loss:
            return schedule.step(*given, return_outputs=False)
        target = torch.zeros(len(batch.tensors[0]), dtype=torch.bool) if label is None else label
        return schedule.step(*given, target=target.to(self.stage.device), losses=losses, return_outputs=returns)

    def _make(self, rows: int) -> Any:
        """Return torch's schedule over new stages of its own, which have the same groups."""
        if rows % self._microbatches:
            raise UsageError(
                f"a batch of {rows} samples does not divide into {self._microbatches} micro-batches; "
                f"let the loader drop the last one (drop_last=True), or give another --microbatches"
            )
        from torch.distributed.pipelining import PipelineStage, schedules

        device = self.stage.device
        stages = [PipelineStage(each.group, each.index, each.of, device) for each in self.stage.placed]
        kind = getattr(schedules, CLASSES[self._schedule])
        return kind(stages if len(stages) > 1 else stages[0], self._microbatches, loss_fn=self._loss)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        with self._part("forward", 0.0):
            loss = apply_loss(self.stage.loss, output, target if self._labelled else None)
        self._since = self._spans.now()
        return loss

    def _time(self, stage: Any) -> None:
        """Time what torch calls of one of its stages, and take the time in between for waiting."""
        for name in METHODS:
            setattr(stage, name, self._timed(getattr(stage, name), name, stage.stage_index))

    def _timed(self, method: Any, name: str, group: int) -> Any:
        part, wait = METHODS[name]
        share = 1 / (self._microbatches * len(self.stage.placed))
        crosses = self._owner(group + 1) not in (None, self._owner(group))

        def timed(*arguments: Any, **options: Any) -> Any:
            self._note_gap(wait)
            whole = options.get("full_backward", True) and name != "backward_weight_one_chunk"
            of_it = 1.0 if whole else self._inputs_share
            self._count(name, group, whole)
            with self._part(part, share * (1.0 - of_it if name == "backward_weight_one_chunk" else of_it)):
                result = method(*arguments, **options)
            self._since = self._spans.now()
            if name == "forward_one_chunk" and crosses:
                self.stage.bytes_sent += 2 * result.nbytes  # a gradient as large comes back
            return result

        return timed

    def _count(self, name: str, group: int, whole: bool) -> None:
        now, most = self.stage.in_flight, self.stage.most_in_flight
        if name == "forward_one_chunk":
            now[group] += 1
            most[group] = max(most[group], now[group])
        elif whole or name == "backward_weight_one_chunk":
            now[group] -= 1

    def _note_gap(self, name: SpanName | None) -> None:
        """Take the time since something was done for that."""
        if name is not None:
            self._spans.add(name, self._since)


@contextmanager
def _together() -> Generator[None]:
    """Say it in our words where another stage is gone, or does not come: torch.distributed has one for all."""
    try:
        yield
    except StepaheadError:
        raise
    except RuntimeError as error:
        what = str(error).partition("\n")[0]
        if not (isinstance(error, dist.DistError) or "/gloo/" in str(error) or "NCCL" in str(error)):
            raise (error.__cause__ or error) from None  # torch wraps what a layer raised in that layer's arguments
        if "imed out" in what:
            raise LinkTimeoutError(f"another stage did not come in the middle of a step: {what}") from error
        raise PeerGoneError(f"another stage is gone in the middle of a step: {what}") from error


def _stages_of(schedule: Any) -> list[Any]:
    return list(getattr(schedule, "_stages", None) or [schedule._stage])


def _send(h: Tensor, to: int | None) -> None:
    """Send a tensor of any shape to another stage."""
    form = [CODES[h.dtype], h.dim(), *h.shape]
    dist.send(torch.tensor(form + [0] * (MOST_FORM - len(form)), device=h.device), to)
    dist.send(h.contiguous(), to)


def _receive(sender: int | None, device: torch.device) -> Tensor:
    """Receive what `_send` sent."""
    packed = torch.empty(MOST_FORM, dtype=torch.int64, device=device)
    dist.recv(packed, sender)
    code, dimensions, *shape = packed.tolist()
    h = torch.empty(shape[:dimensions], dtype=DTYPES[code], device=device)
    dist.recv(h, sender)
    return h
