"""A trial: a plan run for some seconds on throw-away weights, with real workers; nothing is left of it but figures."""

from __future__ import annotations

import math
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepahead.pipeline import owner_of
from stepahead.workers import listen

from .config import write_config
from .folder import RunFolder
from .gantt import Moment
from .monitor import Facts, Monitor, RunState, Sample
from .plan import Plan
from .showing import STOPPED
from .supervisor import Outcome, Supervisor

__all__ = ["Curve", "Limits", "Start", "Trial", "Watch", "run_trial"]

MOST_STEPS = 1_000_000
LEAST_SECONDS = 1.0
"""That are measured even if the loss is where it is to be before."""
Curve = list[tuple[float, int, float]]
"""Seconds since the first batch, samples, and the mean of the last losses."""
Start = Callable[[Plan, RunFolder, Supervisor], None]
"""Starts a plan's workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """For how long a trial goes on."""

    warm_up: float = 0.5
    """Seconds that do not count."""
    seconds: float = 2.0
    """That do."""
    least_steps: int = 5
    """It goes on until there are so many."""
    most_seconds: float = 60.0
    """But not for longer than this."""
    target_loss: float | None = None
    """It ends when the loss has come so far."""


@dataclass(slots=True, kw_only=True)
class Trial:
    """What a trial showed."""

    outcome: Outcome
    state: RunState
    """Since the warm-up."""
    moments: list[list[Moment]]
    """The spans of each stage since then."""
    curve: Curve
    summaries: list[dict[str, Any] | None]
    """Of each stage, if it came to its end."""

    @property
    def is_good(self) -> bool:
        return self.outcome.reason == "done" and self.state.samples_per_second > 0


def run_trial(plan: Plan, place: RunFolder, start: Start, signals: socket.socket | None, limits: Limits) -> Trial:
    """Run a plan for some seconds, without evaluations, in a folder that is removed afterwards."""
    config = replace(plan.config, steps=MOST_STEPS, epochs=None, ledger=False, evaluate=False)
    plan = replace(plan, config=config)
    facts = Facts(job=config.job, schedule=config.schedule, signal=plan.signal, run="", devices=plan.devices, layers=())
    with_loss = owner_of(config.schedule, len(plan.cut) - 1, stages=plan.stages)
    assert with_loss is not None, "the last group is some stage's"
    watch = Watch(limits, Monitor(facts, window=limits.most_seconds), with_loss)
    try:
        write_config(config, place.config)
        with Supervisor(place, listen(place.path), plan.wiring, lambda line: None, signals) as supervisor:
            start(plan, place, supervisor)
            watch.started(time.monotonic())
            for _ in supervisor.looks():
                now = time.monotonic()
                if watch.is_enough(now, supervisor.samples(now), supervisor.moments()):
                    supervisor.stop()
            outcome = supervisor.outcome()
            workers = [supervisor.workers.get(str(stage)) for stage in range(plan.stages)]
    finally:
        shutil.rmtree(place.path, ignore_errors=True)
    return Trial(
        outcome=outcome,
        state=watch.monitor.state(),
        moments=watch.moments,
        curve=watch.curve,
        summaries=[worker.summary if worker else None for worker in workers],
    )


@dataclass(slots=True)
class Watch:
    """Takes in what counts, and says when it is enough."""

    limits: Limits
    monitor: Monitor
    with_loss: int
    """The stage that has the last group: others may have a loss of their own."""
    moments: list[list[Moment]] = field(default_factory=list[list[Moment]])
    curve: Curve = field(default_factory=list[tuple[float, int, float]])
    _begun: float = math.inf
    _first: int = 0
    _seen: int = 0
    _looked: float = 0.0
    _deadline: float = math.inf
    _reached: bool = False

    def started(self, now: float) -> None:
        """Take note that the workers have been started."""
        self._looked, self._deadline = now, now + self.limits.most_seconds

    def is_enough(self, now: float, samples: Sequence[Sample | None], new: Sequence[Sequence[Moment]]) -> bool:
        limits = self.limits
        if now - self._looked > STOPPED:
            self.monitor.forget()
            self._begun, self._deadline, self.moments = math.inf, self._deadline + now - self._looked, []
        self._looked = now
        steps = min(sample["steps"] if sample else 0 for sample in samples)
        if steps and self._begun == math.inf:
            self._begun, self._first = now, steps
        changed, self._seen = steps != self._seen, steps
        alive = all(sample and sample["life"] == "running" for sample in samples)
        if now >= self._begun + limits.warm_up and alive:
            self.moments = self.moments or [[] for _ in new]
            for kept, more in zip(self.moments, new, strict=True):
                kept += more
            if changed:  # so that shares are of whole steps
                self.monitor.take(now, samples)
        self._reached = self._note_loss(samples[self.with_loss]) or self._reached
        reached = self._reached and now >= self._begun + limits.warm_up + LEAST_SECONDS  # so that there is a rate
        enough = limits.warm_up + limits.seconds if steps >= self._first + limits.least_steps else limits.most_seconds
        return reached or now > min(self._begun + enough, self._deadline)

    def _note_loss(self, sample: Sample | None) -> bool:
        """Go on with the curve, and return whether the loss has come as far as it is to come."""
        if sample is None or sample["loss"] is None:
            return False
        if not self.curve or self.curve[-1][1] != sample["samples"]:
            self.curve.append((round(sample["wall"], 3), sample["samples"], round(sample["loss"], 5)))
        target = self.limits.target_loss
        return target is not None and self.curve[-1][2] <= target
