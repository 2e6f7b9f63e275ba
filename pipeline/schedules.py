"""Schedules: the order in which stages act, as data.

An action is a plain tuple (what, stage, step). A schedule is a generator of rounds: the actions of one step, over all
stages, and in the end a round that drains. What one stage does is the sub-sequence that names it; any order that keeps
every stage's own is the same run.

    decoupled, 3 stages, lag 2          locked, 3 stages
    (L: learn from the gradient)        (L: step on the gradient)
    stage 0  F0 F1 L0 F2 L1 F3 ..       stage 0  F0       L0 F1       L1 ..
    stage 1  F0 F1 L0 F2 L1 F3 ..       stage 1     F0 L0       F1 L1    ..
    stage 2  F0 F1    F2    F3 ..       stage 2       F0          F1     ..

"forward" is `Stage.step_ahead`, which includes the step wherever the signal does not wait; "learn" is `Stage.learn`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from .randomness import seed_for

__all__ = ["Action", "Due", "exact_lag", "free_lag", "schedule"]

Action = tuple[Literal["forward", "learn"], int, int]
Due = Callable[[int, int], int]
"""The step before which a stage learns from the gradient of a step."""


def schedule(waits: Sequence[bool], due: Due, steps: Iterable[int]) -> Iterator[list[Action]]:
    """Yield a run's actions, step by step, and at last those for the gradients that are still on their way.

    Args:
        waits: For each stage, whether its signal waits for the gradient from below within the step.
        due: When the others learn from a gradient.
        steps: The steps to run, in order; they may be produced one by one.
    """
    learners = [stage for stage in range(len(waits) - 1) if not waits[stage]]
    unlearnt: dict[int, deque[int]] = {stage: deque() for stage in learners}
    for step in steps:
        actions: list[Action] = []
        for stage in range(len(waits)):
            if stage in unlearnt:
                pending = unlearnt[stage]
                while pending and due(stage, pending[0]) <= step:
                    actions.append(("learn", stage, pending.popleft()))
                pending.append(step)
            actions.append(("forward", stage, step))
        actions.extend(("learn", stage, step) for stage in reversed(range(len(waits) - 1)) if waits[stage])
        yield actions
    yield [("learn", stage, step) for stage in learners for step in unlearnt[stage]]


def exact_lag(lags: Sequence[int]) -> Due:
    """Use the gradient of step t exactly before step t + lag, with a lag for each stage."""
    return lambda stage, step: step + lags[stage]


def free_lag(most: Sequence[int], seed: int) -> Due:
    """Use gradients when they come: after 1 to `most` steps, drawn for each; none overtakes another."""

    def due(stage: int, step: int) -> int:
        window = range(max(0, step - most[stage] + 1), step + 1)
        return max(earlier + 1 + seed_for(seed, stage, earlier, "lag") % most[stage] for earlier in window)

    return due
