"""The ceiling: what the stages reach side by side, each on a batch that is at hand, with no links and no predictor."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from stepahead.pipeline import (
    USEFUL,
    Activation,
    Batch,
    Signal,
    Stage,
    Truth,
    build_group,
    build_groups,
    example_outputs,
)
from stepahead.workers import Paced, Spans
from stepahead.workers.heap import keep_freed_memory

from .plan import Plan
from .start import fork

__all__ = ["ceiling", "first_batch"]

READY = b"."
WARM_UP = 5
"""Steps that do not count."""


class _Given(Signal):
    """A gradient that is there already."""

    draws = False

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.delta = torch.full_like(h, 1e-7)

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        return self.delta[: len(h)]


def ceiling(plan: Plan, seconds: float) -> float:
    """Return samples a second of the slowest stage, when all step at the same time for so many seconds."""
    batch = first_batch(plan)
    groups = build_groups(plan.layers, plan.cut, seed=plan.config.seed)
    inputs = [batch[0], *example_outputs(groups, batch[0])[:-1]]
    begin, results = os.pipe(), [os.pipe() for _ in range(plan.stages)]
    pids = [
        fork(partial(_step_alone, plan, stage, (inputs[stage], batch[1]), seconds, begin[0], results[stage][1]))
        for stage in range(plan.stages)
    ]
    try:
        for reading, _ in results:
            assert os.read(reading, 1) == READY, "a stage said something else"
        os.write(begin[1], READY * plan.stages)
        rates = [float(os.read(reading, 64)) for reading, _ in results]
    finally:
        for pid in pids:
            os.waitpid(pid, 0)
        for descriptor in (*begin, *(end for pair in results for end in pair)):
            os.close(descriptor)
    return len(batch[0]) * min(rates)


def first_batch(plan: Plan) -> Batch:
    """Return the first batch of a plan's data."""
    message = next(plan.feed().messages())
    assert isinstance(message, Activation), "data begins with a batch"
    return message.tensors[0], message.label


def _step_alone(plan: Plan, stage: int, batch: Batch, seconds: float, begin: int, result: int) -> int:
    """Run one stage on the same batch again and again, on its core, and write how many steps it makes a second."""
    if plan.cores[stage]:
        os.sched_setaffinity(0, plan.cores[stage])
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do
    made = _lonely_stage(plan, stage, batch)
    for _ in range(WARM_UP):
        _step(made, batch)
    os.write(result, READY)
    os.read(begin, 1)
    steps, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        _step(made, batch)
        steps += 1
    os.write(result, str(steps / taken).encode())
    return 0


def _lonely_stage(plan: Plan, index: int, batch: Batch) -> Stage:
    """Return a stage that steps on a gradient that is at hand."""
    work = plan.work(index)
    group = build_group(work.layers, work.cut, index, seed=work.recipe.seed)
    (output,) = example_outputs([group], batch[0])
    recipe = replace(work.recipe, signal=lambda h, y: _Given(h), truth=Truth())
    if work.pace is None:
        return recipe.stage(group, index, plan.stages, output, batch[1], device=work.device)
    useful = {part: seconds for part, seconds in work.pace.seconds.items() if part in USEFUL}
    span = Paced(Spans(), replace(work.pace, seconds=useful))
    return recipe.stage(group, index, plan.stages, output, batch[1], device=work.device, span=span)


def _step(stage: Stage, batch: Batch) -> None:
    if isinstance(stage.span, Paced):
        stage.span.spans.step = stage.step
    for _ in stage.step_ahead(Activation(edge=stage.edge_above, step=stage.step, tensors=(batch[0],), label=batch[1])):
        pass
