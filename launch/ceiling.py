"""The ceiling: what the stages reach side by side, each on a batch that is at hand, with no links and no predictor."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from stepahead.pipeline import (
    USEFUL,
    Activation,
    Batch,
    Gradient,
    GradientKind,
    Span,
    Stage,
    TrainingError,
    Truth,
    build_group,
    build_groups,
    example_outputs,
    locked,
)
from stepahead.pipeline.parts import no_span
from stepahead.workers import Paced, Spans
from stepahead.workers.heap import keep_freed_memory

from .plan import Plan
from .start import fork

__all__ = ["ceiling"]

READY = b"."
PATIENCE = 60.0
"""Seconds that a stage may need beyond those that are measured."""
WARM_UP = 5
"""Steps that do not count."""


def ceiling(plan: Plan, seconds: float) -> float:
    """Return samples a second of the slowest stage, when all step at the same time for so many seconds."""
    batch = plan.job.example
    groups = build_groups(plan.layers, plan.cut, seed=plan.config.seed)
    inputs = [batch[0], *example_outputs(groups, batch[0])[:-1]]
    pids: list[int] = []
    with ExitStack() as lines:
        ends: list[socket.socket] = []
        try:
            for stage in range(plan.stages):
                ours, theirs = socket.socketpair()
                ends.append(lines.enter_context(ours))
                with theirs:
                    pids.append(
                        fork(partial(_step_alone, plan, stage, (inputs[stage], batch[1]), seconds, theirs, ours))
                    )
            for stage, end in enumerate(ends):
                _hear(end, stage, PATIENCE)
            for end in ends:
                end.send(READY)
            rates = [float(_hear(end, stage, seconds + PATIENCE)) for stage, end in enumerate(ends)]
        finally:
            lines.close()  # whoever waits for a word leaves then
            for pid in pids:
                os.waitpid(pid, 0)
    return len(batch[0]) * min(rates)


def _hear(end: socket.socket, stage: int, timeout: float) -> bytes:
    """Return what a stage says; one that failed says nothing."""
    end.settimeout(timeout)
    try:
        said = end.recv(64)
    except TimeoutError:
        raise TrainingError(f"the ceiling: stage {stage} said nothing for {timeout:g} s") from None
    if not said:
        raise TrainingError(f"the ceiling: stage {stage} failed; what it raised is above")
    return said


def _step_alone(plan: Plan, stage: int, batch: Batch, seconds: float, line: socket.socket, other: socket.socket) -> int:
    """Run one stage on the same batch again and again, on its core, and write how many steps it makes a second."""
    other.close()  # the parent's end: only when nobody has it any more is its closing heard
    if plan.cores[stage]:
        os.sched_setaffinity(0, plan.cores[stage])
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do
    made, delta = _lonely_stage(plan, stage, batch)
    for _ in range(WARM_UP):
        _step(made, batch, delta)
    line.send(READY)
    if not line.recv(1):  # another stage has failed
        return 1
    steps, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        _step(made, batch, delta)
        steps += 1
    line.send(str(steps / taken).encode())
    return 0


def _lonely_stage(plan: Plan, index: int, batch: Batch) -> tuple[Stage, Tensor]:
    """Return a locked stage, and the gradient at its output that is at hand for each of its steps."""
    work = plan.work(index)
    group = build_group(work.layers, work.cut, index, seed=work.recipe.seed)
    (output,) = example_outputs([group], batch[0])
    recipe = replace(work.recipe, signal=locked, truth=Truth(), inputs=None, chance=1.0)
    span: Span = no_span
    if work.pace is not None:
        useful = {part: seconds for part, seconds in work.pace.seconds.items() if part in USEFUL}
        span = Paced(Spans(), replace(work.pace, seconds=useful))
    stage = recipe.stage(group, index, plan.stages, output, batch[1], device=work.device, span=span)
    return stage, torch.full_like(output, 1e-7)


def _step(stage: Stage, batch: Batch, delta: Tensor) -> None:
    step = stage.step
    if isinstance(stage.span, Paced):
        stage.span.spans.step = step
    list(stage.step_ahead(Activation(edge=stage.edge_above, step=step, tensors=(batch[0],), label=batch[1])))
    if not stage.is_last:
        list(stage.learn(Gradient(edge=stage.edge_below, step=step, tensors=(delta,), kind=GradientKind.TRUTH)))
