"""Where stages run: on which device, and on which cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from stepahead.pipeline import UsageError, parse_device

__all__ = ["cores_of", "devices_of"]


def devices_of(setting: str, stages: int, ours: Sequence[int]) -> tuple[str, ...]:
    """Return the device of each stage, after checking that those of ours are there."""
    gpus = torch.cuda.device_count()
    if setting == "virtual":
        return ("virtual",) * stages
    if setting == "auto":
        setting = "cuda" if gpus else "cpu"
    names = [name.strip() for name in setting.split(",")]
    if names == ["cuda"] and gpus:
        names = [f"cuda:{stage % gpus}" for stage in range(stages)]
    if len(names) == 1:
        names = names * stages
    if len(names) != stages:
        raise UsageError(f"device names {len(names)} devices for {stages} stages; name one, or one for each")
    return tuple(str(parse_device(name)) if stage in ours else name for stage, name in enumerate(names))


def cores_of(devices: Sequence[str], ours: Sequence[int]) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Give each stage of ours a core of its own, as far as they go; a stage on a GPU roams freely."""
    free = sorted(os.sched_getaffinity(0))
    on_cpu = [stage for stage in ours if devices[stage] == "cpu"]
    on_gpu = [stage for stage in ours if devices[stage].startswith("cuda")]
    notes: list[str] = []
    if len(on_cpu) > len(free):
        notes.append(f"{len(on_cpu)} stages share {len(free)} cores: they take turns, {len(free)} at a time")
    gpus = {devices[stage] for stage in on_gpu}
    if len(gpus) < len(on_gpu):
        notes.append(f"{len(on_gpu)} stages share {len(gpus)} GPUs: they take turns")
    cores = [(free[on_cpu.index(stage) % len(free)],) if stage in on_cpu else () for stage in range(len(devices))]
    return tuple(cores), tuple(notes)
