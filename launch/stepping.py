"""What the stages of a run step on, by its settings and its job: a signal, and what is made of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

from stepahead.pipeline import (
    LOCKED,
    SignalRecipe,
    Truth,
    TruthUse,
    UsageError,
    cut_by_count,
    delayed,
    locked,
    probe,
    silent,
    synthetic,
)

from .config import TRUTH_SETTINGS, Config
from .job import Job

__all__ = ["signal_name", "signal_recipe", "signals_of", "truth_of"]

SIGNALS: dict[str, SignalRecipe] = {"locked": locked, "delayed": delayed, "silent": silent}


def signal_name(config: Config, job: Job) -> str:
    """Return what the stages step on, by name."""
    if config.schedule in LOCKED:
        return "locked"
    return "delayed" if truth_of(config, job).is_late else config.signal


def signal_recipe(config: Config, job: Job) -> SignalRecipe:
    """Return what makes a stage's signal."""
    name = signal_name(config, job)
    if name in SIGNALS:
        return SIGNALS[name]
    if name == "probe":
        if job.classes is None:
            raise UsageError("a probe needs to know the number of classes; give the job classes=...")
        return probe(loss=job.loss, optimizer=job.predictor_optimizer, classes=job.classes)
    if name == "auto" and job.signal is not None:
        return job.signal
    return synthetic(job.predictor, optimizer=job.predictor_optimizer, classes=job.classes, lr_schedule=job.lr_schedule)


def signals_of(config: Config, job: Job, stages: int) -> SignalRecipe | Sequence[SignalRecipe]:
    """Return what makes the stages' signals: of all alike, or of each where blocks are decoupled."""
    made = signal_recipe(config, job)
    if config.blocks is None:
        return made
    ends = list(accumulate(cut_by_count(stages, config.blocks)))
    return [made if stage + 1 in ends else locked for stage in range(stages - 1)]


def truth_of(config: Config, job: Job) -> Truth:
    """Return what the stages do with the truth; locked ones wait for it in any case."""
    own = _own_truth(config, job)
    named = {setting.removeprefix("truth_"): getattr(config, setting) for setting in TRUTH_SETTINGS}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    chosen = own if config.truth in ("auto", own.use) else Truth(use=cast(TruthUse, config.truth))
    if given and chosen.use == "off":
        raise UsageError(f"truth_{next(iter(given))} is given, but nothing is made of the truth here; leave it out")
    return replace(chosen, **given)


def _own_truth(config: Config, job: Job) -> Truth:
    """Return what is done with the truth where the settings leave it open."""
    if config.schedule in LOCKED or config.blocks is not None or config.signal not in ("auto", "synthetic"):
        return Truth()
    if job.truth is not None:
        return job.truth
    own = config.signal == "auto" and job.signal is not None
    return Truth() if own or job.inputs is not None or job.chance < 1.0 else Truth(use="true-up")
