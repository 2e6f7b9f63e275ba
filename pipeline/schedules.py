"""Schedules: the order in which stages act, as data.

An action is a plain tuple (what, stage, step). A schedule is a generator of rounds: one step of all stages, and what is
learnt before the next one. What one stage does is the sub-sequence that names it; any order that keeps every stage's
own is the same run.

    decoupled, 3 stages, lag 2          locked, 3 stages
    (L: learn from the gradient)        (L: step on the gradient)
    stage 0  F0 F1 L0 F2 L1 F3 ..       stage 0  F0       L0 F1       L1 ..
    stage 1  F0 F1 L0 F2 L1 F3 ..       stage 1     F0 L0       F1 L1    ..
    stage 2  F0 F1    F2    F3 ..       stage 2       F0          F1     ..

"forward" is `Stage.step_ahead`, which includes the step wherever the signal does not wait; "learn" is `Stage.learn`.
"hear" is `Stage.hear`: a stage with synthetic inputs learns what came from above, with the lag of the stage above.
Gradients that are still on their way after the last round are learnt from in the order in which they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

from .randomness import seed_for

__all__ = ["Action", "Awaits", "Due", "exact_lag", "free_lag", "relayed_lag", "schedule"]

Action = tuple[Literal["forward", "learn", "hear"], int, int]
Due = Callable[[int, int], int]
"""The step before which a stage learns from the gradient of a step."""
Awaits = Callable[[int, int], bool]
"""Whether a stage awaits the truth of a step, which the stages below pass on."""


def schedule(
    waits: Sequence[bool], due: Due, steps: Iterable[int], guessing: Sequence[int] = ()
) -> Iterator[list[Action]]:
    """Yield a run's actions, step by step.

    Args:
        waits: For each stage, whether its signal waits for the gradient from below within the step.
        due: When the others learn from a gradient; of several that are due, the one of the earliest step comes first.
        steps: The steps to run, in order; they may be produced one by one.
        guessing: The stages that run on synthetic inputs.
    """
    unlearnt: dict[int, dict[int, int]] = {stage: {} for stage in range(len(waits) - 1) if not waits[stage]}
    unheard: dict[int, dict[int, int]] = {stage: {} for stage in guessing}
    for step in steps:
        actions: list[Action] = [("forward", stage, step) for stage in range(len(waits))]
        actions.extend(("learn", stage, step) for stage in reversed(range(len(waits) - 1)) if waits[stage])
        for stage, pending in unheard.items():
            pending[step] = due(stage - 1, step)
            actions.extend(("hear", stage, earlier) for earlier in _ripe(pending, step))
        for stage, pending in unlearnt.items():
            pending[step] = due(stage, step)
            actions.extend(("learn", stage, earlier) for earlier in _ripe(pending, step))
        yield actions


def _ripe(pending: dict[int, int], step: int) -> list[int]:
    """Take out, and return, the steps that are due before the next one."""
    ripe = [earlier for earlier, before in pending.items() if before <= step + 1]
    for earlier in ripe:
        del pending[earlier]
    return ripe


def relayed_lag(lag: int, stage: int, stages: int) -> int:
    """Return the lag of a truth that the stages below pass on, each of them two steps later than it got it."""
    return lag + 2 * (stages - 2 - stage)


def exact_lag(lags: Sequence[int], relayed: Sequence[int] | None = None, awaits: Awaits | None = None) -> Due:
    """Use the gradient of step t exactly before step t + lag, with a lag for each stage, and others for truths."""

    def due(stage: int, step: int) -> int:
        truth = relayed is not None and awaits is not None and awaits(stage, step)
        return step + (relayed if truth and relayed is not None else lags)[stage]

    return due


def free_lag(most: Sequence[int], seed: int, awaits: Awaits | None = None) -> Due:
    """Use gradients when they come: after 1 to `most` steps, drawn for each; none overtakes another of its kind.

    A truth takes so long at every stage that passes it on.
    """

    def drawn(stage: int, step: int) -> int:
        return 1 + seed_for(seed, stage, step, "lag") % most[stage]

    @lru_cache(maxsize=4096)
    def due(stage: int, step: int) -> int:
        if awaits is not None and awaits(stage, step):
            window = range(max(0, step - sum(most)), step + 1)
            return max(came(stage, earlier) + drawn(stage, earlier) for earlier in window if awaits(stage, earlier))
        return max(earlier + drawn(stage, earlier) for earlier in range(max(0, step - most[stage] + 1), step + 1))

    def came(stage: int, step: int) -> int:
        return step if stage == len(most) - 2 else due(stage + 1, step)

    return due
