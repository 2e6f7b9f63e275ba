"""What came of a run: `summary.json`, and the exit code."""

from __future__ import annotations

import json
import math
import platform
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from stepahead.workers import complete_snapshot, write_whole

from .environment import version_of
from .folder import RunFolder
from .monitor import COMPARABLE, Baseline
from .plan import Plan
from .supervisor import Loss, Outcome
from .watched import Watched

__all__ = ["EXIT_CODES", "death", "exit_code", "finite", "summarize", "versions", "write_summary"]

EXIT_CODES = {"done": 0, "failed": 1, "worker lost": 3, "interrupted": 130}
USAGE = 2


def summarize(
    plan: Plan,
    folder: RunFolder,
    outcome: Outcome,
    workers: Mapping[str, Watched],
    *,
    metrics: Mapping[str, float],
    seconds: float,
    baseline: Baseline | None,
) -> dict[str, Any]:
    """Return the summary of a run, after making a snapshot of the weights that its workers left."""
    stages = [workers.get(str(stage)) for stage in range(plan.stages)]
    entries = [stage.summary if stage else None for stage in stages]
    figures = _figures(stages, seconds)
    steps, rate = figures["steps"], figures["samples_per_second"]
    complete = all(entry is not None for entry in entries)
    sha256 = complete_snapshot(folder.path, len(plan.cut), steps) if complete else None
    config = plan.config
    return {
        "job": config.job,
        "schedule": config.schedule,
        "signal": plan.signal,
        "truth": plan.truth.use,
        "truth_every": plan.truth.period,
        "lag_mode": config.lag,
        "virtual": plan.is_virtual,
        **figures,
        "metrics": {name: _finite(value) for name, value in metrics.items()},
        "weights_sha256": sha256,
        "speedup": rate / baseline.samples_per_second if baseline and steps >= COMPARABLE else None,
        "baseline": None if baseline is None else asdict(baseline),
        "stages": [_entry(plan, index, entry) for index, entry in enumerate(entries)],
        "restarts": 0,
        "faults": [*map(_fault, outcome.losses), *_failures(outcome)],
        "versions": versions(),
        "exit_reason": outcome.reason,
    }


def write_summary(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write the summary into its run folder."""
    write_whole(folder.summary, json.dumps(summary, indent=1, allow_nan=False) + "\n")


def exit_code(outcome: Outcome) -> int:
    """Return what the process is to end with."""
    if outcome.reason == "failed" and outcome.failure is not None and outcome.failure.kind == "usage":
        return USAGE
    return EXIT_CODES[outcome.reason]


def versions() -> dict[str, str]:
    """Return the versions that matter."""
    return {
        "stepahead": version_of("stepahead"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are numbers."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _figures(stages: Sequence[Watched | None], seconds: float) -> dict[str, Any]:
    """Return how far the run came and how fast, as the last stage has it, or if it said nothing, as it was seen to."""
    last = stages[-1]
    said = last.summary if last else None
    losses = [stage.summary["loss"] for stage in reversed(stages) if stage and stage.summary]
    samples = said["samples"] if said else (last.samples if last else 0)
    wall_seconds = said["seconds"] if said else seconds
    return {
        "steps": min((stage.steps if stage else 0) for stage in stages),
        "samples": samples,
        "wall_seconds": wall_seconds,
        "samples_per_second": samples / wall_seconds if wall_seconds else 0.0,
        "train_loss": _finite(next((loss for loss in losses if loss is not None), None)),
    }


def _finite(value: float | None) -> float | None:
    """Return the value, or None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def _entry(plan: Plan, stage: int, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a stage's entry; of one that did not come to its end there is little to say."""
    if entry is None:
        return {"device": plan.devices[stage]}
    predictor = entry["predictor"] and {name: _finite(value) for name, value in entry["predictor"].items()}
    return {key: value for key, value in entry.items() if key not in ("samples", "loss")} | {"predictor": predictor}


def _fault(loss: Loss) -> dict[str, Any]:
    return {"worker": loss.worker, "steps": loss.steps, "what": death(loss)}


def _failures(outcome: Outcome) -> list[dict[str, Any]]:
    """Return what a worker raised, if that ended the run."""
    failure = outcome.failure
    if outcome.reason != "failed" or failure is None:
        return []
    what = f"{failure.error}: {failure.message}"
    return [{"worker": failure.worker, "steps": failure.steps, "what": what}]


def death(loss: Loss) -> str:
    """Return how a worker died."""
    if loss.status is None:
        return "is gone"
    if loss.status < 0:
        return f"was killed by {signal.Signals(-loss.status).name}"
    return f"ended with exit code {loss.status}"
