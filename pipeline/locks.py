"""Locked schedules with micro-batches: how many groups a stage has under each, which, and what it cannot do.

torch.distributed.pipelining runs them (`workers/locked.py`); here is only what must be known before.

    gpipe, 1f1b                         one group a stage
    interleaved-1f1b, interleaved-zb    two: stage s has groups s and s + S
    zbv                                 two, in a V: stage s has groups s and 2 S - 1 - s, so the first has the loss
"""

from __future__ import annotations

from .errors import UsageError

__all__ = ["LOCKED", "MICROBATCHED", "check_microbatches", "groups_a_stage", "groups_of", "owner_of"]

MICROBATCHED = ("gpipe", "1f1b", "interleaved-1f1b", "interleaved-zb", "zbv")
LOCKED = ("lockstep", *MICROBATCHED)
"""All schedules under which a stage waits for the gradient from below."""


def groups_a_stage(schedule: str) -> int:
    """Return how many groups each stage has under a schedule."""
    return 2 if schedule in ("interleaved-1f1b", "interleaved-zb", "zbv") else 1


def groups_of(schedule: str, stage: int, stages: int) -> tuple[int, ...]:
    """Return the groups of a stage, in the order in which a batch comes to them."""
    if groups_a_stage(schedule) == 1:
        return (stage,)
    return (stage, 2 * stages - 1 - stage) if schedule == "zbv" else (stage, stages + stage)


def owner_of(schedule: str, group: int, *, stages: int) -> int | None:
    """Return the stage that has a group; None for one that is not there."""
    return next((stage for stage in range(stages) if group in groups_of(schedule, stage, stages)), None)


def check_microbatches(schedule: str, stages: int, microbatches: int) -> None:
    """Refuse a number of micro-batches that the schedule cannot do with."""
    what = f"{schedule} on {stages} stages cannot do with {microbatches} micro-batches"
    if stages < 2:
        raise UsageError(f"{schedule} is a pipeline; on one stage there is nothing to schedule: give at least 2 stages")
    if schedule == "1f1b" and microbatches < stages:
        raise UsageError(f"{what}: it needs at least one for each stage; --microbatches {stages}")
    rounds = max(1, microbatches // stages)
    if schedule.startswith("interleaved") and microbatches % rounds:
        fitting = microbatches // stages * stages
        raise UsageError(f"{what}: it makes {rounds} rounds of equally many; --microbatches {fitting}")
