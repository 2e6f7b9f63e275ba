"""Advice: from where the time of each stage goes to what to change. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from .breakdown import Breakdown
from .causes import WAITS

__all__ = ["BLOCK", "LOCK", "advise", "better_cut"]

LOCK = "that is the lock: it waits for the other stages within each step; --schedule decoupled does not"
BLOCK = "it waits for the others of its block within each step, or for a slower block; more --blocks are smaller ones"
Cut = tuple[float, tuple[int, ...]]
"""The time of the slowest stage, and how many layers each stage has."""
WORTH = 0.03
"""A gain, or a share of the time, below which nothing is said."""


def advise(
    stages: Sequence[Breakdown],
    cut: Sequence[int],
    costs: Sequence[float],
    names: Sequence[str],
    *,
    shared: bool = False,
    waits: str | None = None,
) -> list[str]:
    """Return what would help, the most first.

    Args:
        stages: Where the time goes.
        cut: How many layers each stage has.
        costs: What each layer costs, in any unit.
        names: The layers' names.
        shared: Whether stages take turns on a device.
        waits: Why they wait for each other, if it is always for one reason: LOCK or BLOCK.
    """
    slowest = max(range(len(stages)), key=lambda stage: stages[stage].busy)
    causes = _causes(stages, slowest, waits)
    if waits is not None:  # there may be several groups in a stage, or stages that share a step
        return causes
    if shared:
        turns = "stages share a device: what one waits for is mostly its turn, and its turn counts as its own time; "
        return [f"{turns}use as many stages as devices", *causes]
    better, gain = better_cut(stages, cut, costs)
    if gain >= WORTH:
        place = ",".join(names[first] for first in list(accumulate(better))[:-1])
        return [f"stage {slowest} is the slowest: cut elsewhere: --cut {place}; expected {gain:+.0%}", *causes]
    return causes


def _causes(stages: Sequence[Breakdown], slowest: int, waits: str | None) -> list[str]:
    """Return what stages idle for, the most first; stages that idle for the same reason are named together."""
    by_reason: dict[str, dict[int, float]] = {}
    for stage, breakdown in enumerate(stages):
        for cause, milliseconds in breakdown.idle.items():
            share = milliseconds / breakdown.wall if breakdown.wall else 0.0
            if share >= WORTH:
                reason = waits if waits is not None and cause in WAITS else _why(cause, stage, slowest)
                of_reason = by_reason.setdefault(reason, {})
                of_reason[stage] = of_reason.get(stage, 0.0) + share
    said = [
        (sorted(((share, stage) for stage, share in found.items()), reverse=True), reason)
        for reason, found in by_reason.items()
    ]
    return [f"{_who_idles(found)}: {reason}" for found, reason in sorted(said, reverse=True)]


def _who_idles(found: Sequence[tuple[float, int]]) -> str:
    """Return stages and their shares of idle time, given the most first."""
    share, stage = found[0]
    others = [str(stage) for _, stage in found[1:]]
    also = f" (and {found[-1][0]:.0%} or more: {', '.join(others)})" if others else ""
    return f"stage {stage} idles {share:.0%}{also}"


def better_cut(
    stages: Sequence[Breakdown], cut: Sequence[int], costs: Sequence[float]
) -> tuple[tuple[int, ...], float]:
    """Return the cut whose slowest stage is fastest, and by how much faster the pipeline would be.

    A layer takes the share of its stage's time that its cost says; what a stage pays for its predictor stays with it.
    """
    times: list[float] = []
    for stage, (first, count) in enumerate(zip([0, *accumulate(cut)][:-1], cut, strict=True)):
        of_layers = costs[first : first + count]
        scale = stages[stage].useful / (sum(of_layers) or 1.0)
        times += [cost * scale for cost in of_layers]
    best, found = _best_cut(times, [stage.tax for stage in stages])
    now = max(stage.busy for stage in stages)
    return found, now / best - 1 if best > 0 else 0.0


def _best_cut(times: Sequence[float], taxes: Sequence[float]) -> Cut:
    """Return the least possible time of the slowest stage, and the cut that has it."""
    until = [0.0, *accumulate(times)]
    nothing: Cut = (math.inf, ())
    best: list[Cut] = [(0.0, ()), *([nothing] * len(times))]
    for stage, tax in enumerate(taxes):
        row: list[Cut] = [nothing] * (len(times) + 1)
        for end in range(stage + 1, len(times) - len(taxes) + stage + 2):
            row[end] = min(
                (max(best[begin][0], until[end] - until[begin] + tax), (*best[begin][1], end - begin))
                for begin in range(stage, end)
            )
        best = row
    return best[-1]


def _why(cause: str, stage: int, slowest: int) -> str:
    if cause == "wait_input" and stage == 0:
        return "the data comes too slowly; give the loader workers, or cache what it makes"
    if cause in ("wait_input", "wait_credit") and stage == slowest:
        return "it is the slowest and waits all the same: work comes in bursts, which a larger --window evens out"
    if cause == "wait_input":
        return f"no batch has come; stage {slowest} is the slowest"
    if cause == "wait_credit":
        return f"there is no room to send; stage {slowest} is the slowest"
    if cause == "wait_gradient":
        return "a gradient is due that has not come; --max-lag lets it lag more"
    if cause == "send":
        return "it copies into links; a cut where less crosses would help"
    return "in the loop, evaluations and what is not timed; longer steps (larger batches) make it less"
