"""The locked baseline: what the same stages do under a locked schedule, measured before training on throw-away weights.

The same workers, links, layers, data and cores, for a few seconds; nothing of it is left but the figures. Or the
figures are taken from the summary of an earlier run.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepahead.pipeline import UsageError
from stepahead.workers import listen

from .breakdown import break_down
from .broadcast import BASELINE
from .config import write_config
from .folder import RunFolder
from .gantt import Moment
from .monitor import Baseline, Facts, Monitor
from .plan import Plan
from .showing import STOPPED
from .supervisor import Outcome, Supervisor

__all__ = ["baseline_from", "measure_baseline"]

WARM_UP, SECONDS = 0.5, 2.0
"""Seconds that do not count, and that do."""
LEAST_STEPS, MOST_SECONDS = 5, 60.0
"""It goes on until there are so many steps, but not for longer than so many seconds."""
MOST_STEPS = 1_000_000


def measure_baseline(
    plan: Plan, folder: RunFolder, start: Callable[[Plan, RunFolder, Supervisor], None], signals: socket.socket | None
) -> tuple[Baseline | None, Outcome]:
    """Run the plan's stages under its locked baseline for a few seconds; return what it gave, and how it ended."""
    schedule = plan.config.baseline
    config = replace(plan.config, schedule=schedule, steps=MOST_STEPS, epochs=None, ledger=False)
    config = replace(config, evaluate=False).without_truth()
    locked = replace(plan, config=config)
    place = RunFolder.create(config.job, str(folder.path / BASELINE))
    write_config(config, place.config)
    facts = Facts(job=config.job, schedule=schedule, signal="locked", run="", devices=plan.devices, layers=())
    monitor = Monitor(facts, window=MOST_SECONDS)
    try:
        with Supervisor(place, listen(place.path), plan.wiring, lambda line: None, signals) as supervisor:
            start(locked, place, supervisor)
            moments = _run(supervisor, monitor)
            outcome = supervisor.outcome()
    finally:
        shutil.rmtree(place.path, ignore_errors=True)
    state = monitor.state()
    if outcome.reason != "done" or not state.samples_per_second:
        return None, outcome
    found = Baseline(
        schedule=schedule,
        source="measured",
        samples_per_second=state.samples_per_second,
        useful=tuple(stage.useful for stage in state.stages if stage.useful is not None),
        idle=tuple(stage.idle for stage in state.stages if stage.idle),
        spans=tuple({**each.spans, "other": each.idle["other"]} for each in break_down(moments) or ()),
    )
    return found, outcome


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


def _run(supervisor: Supervisor, monitor: Monitor) -> list[list[Moment]]:
    """Let it run for as long as is needed, and take in what counts; return the spans of each stage."""
    moments: list[list[Moment]] = []
    begun, first, seen = math.inf, 0, 0
    looked = time.monotonic()
    deadline = looked + MOST_SECONDS
    for _ in supervisor.looks():
        now = time.monotonic()
        if now - looked > STOPPED:
            monitor.forget()
            begun, deadline, moments = math.inf, deadline + now - looked, []
        looked = now
        samples, new = supervisor.samples(now), supervisor.moments()
        steps = min(sample["steps"] if sample else 0 for sample in samples)
        if steps and begun == math.inf:
            begun, first = now, steps
        changed, seen = steps != seen, steps
        alive = all(sample and sample["life"] == "running" for sample in samples)
        if now >= begun + WARM_UP and alive:
            moments = moments or [[] for _ in new]
            for kept, more in zip(moments, new, strict=True):
                kept += more
            if changed:  # a rate is from one change of the count to another
                monitor.take(now, samples)
        enough = WARM_UP + SECONDS if steps >= first + LEAST_STEPS else MOST_SECONDS
        if now > min(begun + enough, deadline):
            supervisor.stop()
    return moments
