"""The locked baseline: what the same stages do under a locked schedule, measured before training on throw-away weights.

The same workers, links, layers, data and cores, for a few seconds; nothing of it is left but the figures. Or the
figures are taken from the summary of an earlier run.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepahead.pipeline import UsageError

from .breakdown import break_down
from .broadcast import BASELINE
from .folder import RunFolder
from .monitor import Baseline
from .plan import Plan
from .supervisor import Outcome
from .trial import Limits, Start, run_trial

__all__ = ["baseline_from", "measure_baseline"]


def measure_baseline(
    plan: Plan, folder: RunFolder, start: Start, signals: socket.socket | None
) -> tuple[Baseline | None, Outcome]:
    """Run the plan's stages under its locked baseline for a few seconds; return what it gave, and how it ended."""
    schedule = plan.config.baseline
    locked = replace(plan, config=replace(plan.config.without_decoupling(), schedule=schedule))
    place = RunFolder.create(plan.config.job, str(folder.path / BASELINE))
    trial = run_trial(locked, place, start, signals, Limits())
    if not trial.is_good:
        return None, trial.outcome
    state = trial.state
    found = Baseline(
        schedule=schedule,
        source="measured",
        samples_per_second=state.samples_per_second,
        useful=tuple(stage.useful for stage in state.stages if stage.useful is not None),
        idle=tuple(stage.idle for stage in state.stages if stage.idle),
        spans=tuple({**each.spans, "other": each.idle["other"]} for each in break_down(trial.moments) or ()),
    )
    return found, trial.outcome


def baseline_from(name: str, stages: int) -> Baseline:
    """Return the baseline that an earlier run of as many stages is: its folder, or its summary.json."""
    path = Path(name)
    file = path / "summary.json" if path.is_dir() else path
    try:
        summary = json.loads(file.read_text())
        found, had = _locked_part(summary, name), len(summary["stages"])
    except OSError as error:
        what = f"the baseline {name} cannot be read: {error.strerror}"
        raise UsageError(f"{what}; give lockstep, gpipe, 1f1b, none, or an earlier run") from None
    except (ValueError, LookupError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"the baseline {file} is no summary of a finished run ({what})") from None
    if not 0 < found.samples_per_second < math.inf:
        raise UsageError(f"the baseline {file} made {found.samples_per_second} samples a second; give another run")
    if had != stages:
        raise UsageError(f"the baseline {file} had {had} stages, and this run has {stages}")
    return found


def _locked_part(summary: Mapping[str, Any], name: str) -> Baseline:
    """Return what a summary says of a locked schedule: the run itself, or the baseline that it measured."""
    if summary["signal"] == "locked":
        known = [stage for stage in summary["stages"] if stage["useful"] is not None]  # none with telemetry off
        parts = {part: [stage[part] for stage in known] for part in ("useful", "idle")}
        measured: Mapping[str, Any] = {**summary, **parts}
    elif summary["baseline"] is None:
        raise UsageError(f"the baseline {name} is neither a locked run nor one that measured a locked baseline")
    else:
        measured = summary["baseline"]
    return Baseline(
        schedule=measured["schedule"],
        source=name,
        samples_per_second=measured["samples_per_second"],
        useful=tuple(measured["useful"]),
        idle=tuple(measured.get("idle", ())),
        spans=tuple(measured.get("spans", ())),
    )
