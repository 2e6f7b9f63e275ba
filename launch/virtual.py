"""What virtual stages take: the shares of their work are measured, once, before anything starts."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from stepahead.pipeline import (
    Activation,
    Batch,
    Carried,
    Cut,
    Gradient,
    GradientKind,
    Group,
    Layer,
    Part,
    Recipe,
    Stage,
    Truth,
    UsageError,
    build_group,
    example_outputs,
    locked,
)
from stepahead.workers import Pace

__all__ = ["paces_of", "parse_slow_stages", "short_actions"]

LEAST_MS = 10.0
ROUNDS, TRIES = 3, 5
WARM_UP, STEPS, REPEATS = 2, 6, 2
"""Of a round: steps that do not count, that do at the least, and how often what is done seldom is to come in them."""
MOST = 60
"""Steps of a round, however seldom that is."""


def parse_slow_stages(text: str | None, stages: int) -> dict[int, float]:
    """Return by how much which stages are slower, from "3:1.5,5:2"."""
    found: dict[int, float] = {}
    for entry in filter(None, (text or "").split(",")):
        times = math.nan
        stage, _, factor = entry.partition(":")
        try:
            number, times = int(stage), float(factor)
        except ValueError:
            number = -1
        fits = 0 <= number < stages and number not in found and 0 < times < math.inf
        if fits:
            found[number] = times
        else:
            what = f"slow_stage is {text!r}; it must be stage:factor, each stage once, from 0 to {stages - 1}"
            raise UsageError(f"{what}: --slow-stage {min(3, stages - 1)}:1.5")
    return found


def paces_of(
    layers: Sequence[Layer],
    cut: Cut,
    recipe: Recipe,
    batch: Batch,
    *,
    stage_ms: float,
    jitter: float,
) -> tuple[Pace, ...]:
    """Return the pace of each group, after running a few batches through copies of all of them, one by one."""
    groups = [build_group(layers, cut, index, seed=recipe.seed) for index in range(len(cut))]
    outputs = example_outputs(groups, batch[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have
    recipe = replace(recipe, inputs=None, chance=1.0)
    plain = replace(recipe, signal=locked, truth=Truth())
    paces: list[Pace] = []
    for index, group in enumerate(groups):
        inputs = batch[0] if index == 0 else outputs[index - 1]
        case = _Case(group, index, len(cut), (inputs, batch[1]), outputs[index])
        useful, found = case.measure_in_turn(plain, recipe)
        scale = stage_ms / 1e3 / sum(useful.values())
        parts: dict[Part, float] = {**found, **useful}
        lasts: dict[Part, float] = {part: seconds * scale for part, seconds in parts.items()}
        share = case.inputs_share(plain, useful)
        paces.append(Pace(stage=index, seconds=lasts, inputs_share=share, jitter=jitter, seed=recipe.seed))
    torch.set_num_threads(threads)
    return tuple(paces)


@dataclass(frozen=True)
class _Case:
    """A group, and a batch as it comes to it."""

    group: Group
    index: int
    of: int
    batch: Batch
    output: Tensor

    def measure_in_turn(self, *recipes: Recipe) -> list[dict[Part, float]]:
        """Return each part's seconds under each recipe: the least of some rounds, for other work only adds to them."""
        rounds = [[self._measure(recipe) for recipe in recipes] for _ in range(ROUNDS)]
        return [{part: min(found[part] for found in each) for part in each[0]} for each in zip(*rounds, strict=True)]

    def inputs_share(self, recipe: Recipe, useful: Mapping[Part, float]) -> float:
        """Return the share of the backward pass that the gradient of the input takes, if it goes any further."""
        if self.index == 0 or "backward" not in useful:
            return 0.5
        stage = self._stage(recipe, _Timer())
        seconds = median(_time_inputs(stage, self.batch[0], torch.full_like(self.output, 1e-6)) for _ in range(TRIES))
        return min(max(seconds / useful["backward"], 0.2), 0.8)

    def _stage(self, recipe: Recipe, span: _Timer) -> Stage:
        return recipe.stage(deepcopy(self.group), self.index, self.of, self.output, self.batch[1], span=span)

    def _measure(self, recipe: Recipe) -> dict[Part, float]:
        """Make some steps with a copy; return each part's seconds."""
        timer = _Timer()
        stage = self._stage(recipe, timer)
        early: dict[Part, list[float]] = {}
        """What is so rare that it may not come again."""
        delta = torch.full_like(self.output, 1e-6)
        period = max(getattr(stage.signal, "every", 1), stage.truth.every, stage.truth.above)
        for step in range(WARM_UP + min(max(STEPS, REPEATS * period), MOST)):
            timer.step = step
            if step == WARM_UP:
                early = dict(timer.seconds)
                timer.seconds.clear()
            inputs, label = self.batch
            list(stage.step_ahead(Activation(edge=stage.edge_above, step=step, tensors=(inputs,), label=label)))
            if not stage.is_last:
                kind = GradientKind.TRUTH if stage.truth.awaits(step) else GradientKind.TARGET
                told = stage.signal.answer.example(delta)
                list(stage.learn(Gradient(edge=stage.edge_below, step=step, tensors=told, kind=kind)))
        kept: dict[Part, list[float]] = {**early, **timer.seconds}
        return {part: median(times) for part, times in kept.items()}


def _time_inputs(stage: Stage, inputs: Tensor, delta: Tensor) -> float:
    """Return the seconds that the gradient of the input takes by itself."""
    forward = stage.passes.again(inputs, 0, [Carried()] * len(stage.passes.recurrent))
    begun = time.perf_counter()
    stage.passes.gradients(forward, [forward.h_in], delta)
    return time.perf_counter() - begun


def short_actions(paces: Sequence[Pace], pieces: int) -> Iterator[str]:
    """Say so where what stages do is over so soon that links are measured too.

    Args:
        pieces: Into how many a stage's passes are cut.
    """
    parts: tuple[Part, ...] = ("forward", "backward")
    shortest = min(pace.seconds.get(part, 0.0) for pace in paces for part in parts) * 1e3 / pieces
    if shortest < LEAST_MS:
        rest = f"below {LEAST_MS:g} it measures the links too"
        yield f"what virtual stages do lasts {shortest:.1f} ms at the least; {rest}"


class _Timer:
    """Adds up the seconds of each part of the step at hand."""

    def __init__(self) -> None:
        self.seconds: dict[Part, list[float]] = defaultdict(list)
        self.step = 0
        self._steps: dict[Part, int] = {}

    @contextmanager
    def __call__(self, part: Part) -> Generator[None]:
        begun = time.perf_counter()
        yield
        taken, times = time.perf_counter() - begun, self.seconds[part]
        if self._steps.get(part) == self.step:
            times[-1] += taken
        else:
            times.append(taken)
        self._steps[part] = self.step
