"""Samples: what a worker says of itself a few times a second, and how another process reads it.

The worker writes its figures into its telemetry and goes on; nobody answers. What it does at the moment, and where its
time went, are in there anyway.
"""

from __future__ import annotations

import math
import time
from mmap import PAGESIZE
from typing import Any

import torch

from stepahead.pipeline import Stage
from stepahead.pipeline.devices import memory_used

from .locked_stage import LockedStage
from .loop import Links, Progress
from .spans import NAMES, parts_of, seconds_of
from .telemetry import REALS, Telemetry

__all__ = ["PREDICTOR", "read_sample", "write_sample"]

PREDICTOR = ("cosine", "relative_error", "sign_error")
PLAIN = ("steps", "samples", "counted", "skipped", "unanswered", "held", "memory")


def write_sample(
    telemetry: Telemetry, progress: Progress, stage: Stage | LockedStage | None, links: Links | None
) -> None:
    """Write how far a worker is; reading a stage's figures waits for its device."""
    telemetry["steps"], telemetry["samples"], telemetry["counted"] = progress.steps, progress.samples, progress.counted
    if progress.lags:
        telemetry["lag_p50"], telemetry["lag_max"] = progress.lag_p50 or 0, max(progress.lags)
    if links is not None:
        _write_queues(telemetry, links)
    if stage is not None:
        _write_stage(telemetry, progress, stage)


def read_sample(telemetry: Telemetry, now: int | None = None) -> dict[str, Any]:
    """Return what the worker wrote last, and where its time went until now; None for what it does not know."""
    now = int(telemetry["ended"]) or (time.perf_counter_ns() if now is None else now)
    seconds = seconds_of(telemetry, now)
    begun, doing = int(telemetry["begun"]), int(telemetry["doing"])
    wall = (now - begun) / 1e9 if begun else 0.0
    open_span = 0 <= doing < len(NAMES)
    reals = {name: telemetry[name] for name in REALS}
    return {
        **{name: int(telemetry[name]) for name in PLAIN},
        **{name: value if math.isfinite(value) else None for name, value in reals.items()},
        "lag": [int(telemetry["lag_p50"]), int(telemetry["lag_max"])],
        "queue_in": [int(telemetry["in_waiting"]), int(telemetry["in_capacity"])],
        "queue_out": [int(telemetry["out_waiting"]), int(telemetry["out_capacity"])],
        "wall": wall,
        "seconds": parts_of(seconds, max(wall, sum(seconds.values()))) if begun and telemetry.events else {},
        "doing": NAMES[doing] if open_span else "other",
        "doing_seconds": max(now - int(telemetry["since"]), 0) / 1e9 if open_span else 0.0,
    }


def _write_queues(telemetry: Telemetry, links: Links) -> None:
    into, out = links.activations_in, links.activations_out
    telemetry["in_waiting"], telemetry["in_capacity"] = into.waiting, into.capacity
    if out is not None:
        telemetry["out_waiting"], telemetry["out_capacity"] = out.waiting, out.capacity


def _write_stage(telemetry: Telemetry, progress: Progress, stage: Stage | LockedStage) -> None:
    statistics = stage.statistics()
    telemetry["skipped"], telemetry["unanswered"] = statistics.skipped, statistics.unanswered
    telemetry["held"] = statistics.held
    telemetry["memory"] = _memory_used(stage.device)
    telemetry["loss"] = _or_nan(progress.loss)
    telemetry["gradient_norm"] = _or_nan(statistics.gradient_norm)
    telemetry["missed"] = _or_nan(statistics.missed)
    inputs, windows = statistics.inputs, statistics.windows
    telemetry["inputs_error"] = math.nan if inputs is None else inputs.relative_error
    telemetry["windows_cosine"] = math.nan if windows is None else windows.cosine
    if statistics.quality is not None:
        for name in PREDICTOR:
            telemetry[name] = getattr(statistics.quality, name)


def _memory_used(device: torch.device) -> int:
    """Return the bytes that this process has on its device: on a CPU, all that it has in memory by itself."""
    used = memory_used(device)
    if used is not None:
        return used[0]
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * PAGESIZE


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
