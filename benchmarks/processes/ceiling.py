"""The ceiling: what the groups reach side by side, each on its own core, with no links and no predictor."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from stepahead.launch.plan import Plan
from stepahead.launch.start import fork
from stepahead.pipeline import Activation, Batch, Signal, Stage, build_group, example_outputs
from stepahead.workers import StageWork
from stepahead.workers.heap import keep_freed_memory

__all__ = ["Given", "ceiling", "first_batches"]

READY = b"."


class Given(Signal):
    """A gradient that is there already."""

    draws = False

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.delta = torch.randn_like(h) * 1e-6

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        return self.delta[: len(h)]


def ceiling(plan: Plan, steps: int) -> float:
    """Return samples a second of the slowest group, when all step at the same time on a batch that is at hand."""
    batch = first_batches(plan, 1)[0]
    begin, seconds = os.pipe(), [os.pipe() for _ in range(plan.stages)]
    inputs = stage_inputs(plan, batch[0])
    pids = [
        fork(partial(step_alone, plan, stage, (inputs[stage], batch[1]), steps, begin[0], seconds[stage][1]))
        for stage in range(plan.stages)
    ]
    for reading, _ in seconds:
        assert os.read(reading, 1) == READY
    os.write(begin[1], READY * plan.stages)
    taken = [float(os.read(reading, 64)) for reading, _ in seconds]
    for pid in pids:
        os.waitpid(pid, 0)
    for descriptor in (*begin, *(end for pair in seconds for end in pair)):
        os.close(descriptor)
    return steps * len(batch[0]) / max(taken)


def first_batches(plan: Plan, count: int) -> list[Batch]:
    """Return the first batches of a plan's data."""
    activations = (message for message in plan.feed().messages() if isinstance(message, Activation))
    return [(message.tensors[0], message.label) for message in islice(activations, count)]


def stage_inputs(plan: Plan, data: Tensor) -> list[Tensor]:
    """Return what comes to each stage for a batch."""
    work = plan.work(0)
    groups = [build_group(work.layers, work.cut, index) for index in range(plan.stages)]
    return [data, *example_outputs(groups, data)[:-1]]


def step_alone(plan: Plan, stage: int, batch: Batch, steps: int, begin: int, result: int) -> int:
    """Run one stage on the same batch again and again, pinned to its core, and write how long it took."""
    os.sched_setaffinity(0, plan.cores[stage])
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do
    made = lonely_stage(plan.work(stage), stage, plan.stages, batch)
    run(made, batch, steps=10)
    os.write(result, READY)
    os.read(begin, 1)
    start = time.perf_counter()
    run(made, batch, steps)
    os.write(result, str(time.perf_counter() - start).encode())
    return 0


def lonely_stage(work: StageWork, index: int, stages: int, batch: Batch) -> Stage:
    """Return a stage that steps on a gradient that is at hand."""
    group = build_group(work.layers, work.cut, index)
    (output,) = example_outputs([group], batch[0])
    recipe = replace(work.recipe, signal=lambda h, y: Given(h))
    return recipe.stage(group, index, stages, output, batch[1])


def run(stage: Stage, batch: Batch, steps: int) -> None:
    for _ in range(steps):
        message = Activation(edge=stage.edge_above, step=stage.step, tensors=(batch[0],), label=batch[1])
        for _ in stage.step_ahead(message):
            pass
