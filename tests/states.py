"""Made-up runs for the tests of what people see, on a clock that is moved by hand."""

from __future__ import annotations

import math
from typing import Any

from stepahead.launch.monitor import Baseline, Facts, Monitor

__all__ = ["facts", "monitor", "sample"]


def facts(stages: int = 4, **more: Any) -> Facts:
    useful = tuple(0.5 / stages for _ in range(stages))
    settings: dict[str, Any] = {
        "job": "digits",
        "schedule": "decoupled",
        "signal": "auto",
        "run": "runs/digits-1",
        "devices": ("cpu",) * stages,
        "layers": tuple(f"layers {9 * stage} to {9 * stage + 8}" for stage in range(stages)),
        "total_steps": 800,
        "baseline": Baseline(schedule="lockstep", source="measured", samples_per_second=16_000.0, useful=useful),
    }
    return Facts(**settings | more)


def sample(time: float, stage: int = 0, *, last: bool = False, **more: Any) -> dict[str, Any]:
    """Return what a stage says after so many seconds, of which it spent 80 % and less usefully."""
    useful = 0.8 - 0.1 * (stage % 4)
    steps = round(40 * time)
    seconds = {"useful": useful, "tax": 0.05, "wait_input": 0.9 - useful, "wait_credit": 0.0, "wait_gradient": 0.0}
    seconds |= {"link": 0.02, "other": 0.03}
    return {
        "time": time,
        "life": "running",
        "gpu": None,
        "steps": steps,
        "samples": 720 * steps,
        "counted": steps * 25_000_000,
        "skipped": 0,
        "unanswered": 0 if last else 2,
        "held": 0 if last else 2 * 64 * 128 * 4,
        "memory": 212 * 2**20,
        "loss": 2 * math.exp(-time / 4) + 0.1,
        "cosine": None if last else 0.5 + 0.01 * time,
        "relative_error": None if last else 0.8,
        "sign_error": None if last else 0.2,
        "gradient_norm": 0.314,
        "lag": [0, 0] if last else [2, 3],
        "queue_in": [1, 4 if stage == 0 else 2],
        "queue_out": [0, 0] if last else [2, 2],
        "wall": time,
        "seconds": {name: share * time for name, share in seconds.items()},
        "doing": "forward",
        "doing_seconds": 0.004,
        **more,
    }


def monitor(stages: int = 4, seconds: float = 10.0, **more: Any) -> Monitor:
    """Return a monitor that has seen a run of so many seconds."""
    made = Monitor(facts(stages, **more))
    made.evaluated(400, {"accuracy": 0.9412, "loss": 0.2})
    for tick in range(round(4 * seconds) + 1):
        samples = [sample(tick / 4, stage, last=stage == stages - 1) for stage in range(stages)]
        made.take(tick / 4, samples)
    return made
