"""This machine, for bug reports: versions, cores, memory, limits, GPUs."""

from __future__ import annotations

import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["cgroup_limit", "core_quota", "describe", "gpus", "machine", "memory", "version_of"]

PACKAGES = ("stepahead", "torch", "pyzmq", "msgpack", "rich", "safetensors", "numpy", "nvidia-ml-py")
LIMITS = {
    "open files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "file size": resource.RLIMIT_FSIZE,
    "address space": resource.RLIMIT_AS,
    "locked memory": resource.RLIMIT_MEMLOCK,
}
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE")
GIB = 2**30


def describe() -> str:
    """Return all of it as lines of name and value."""
    lines = [(name, version_of(name)) for name in PACKAGES]
    lines += [("python", platform.python_version()), ("system", platform.platform()), ("processor", _processor())]
    lines += [("cores", _cores()), ("memory", _memory()), ("/dev/shm", _shared())]
    lines += [(f"limit: {name}", _limit(number)) for name, number in LIMITS.items()]
    lines += [("GPUs", ", ".join(gpus()) or "none")]
    lines += [(name, os.environ[name]) for name in VARIABLES if name in os.environ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def machine() -> str:
    """Return what the machine is, in a line."""
    total, _ = memory()
    parts = [_processor(), f"cores: {_cores()}", f"{total / GIB:.0f} GiB", platform.platform(), *gpus()]
    return "; ".join(parts)


def version_of(package: str) -> str:
    """Return the version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def gpus() -> list[str]:
    """Return the names of the CUDA devices that torch sees."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def memory() -> tuple[int, int]:
    """Return the machine's memory in bytes: all, and what is available."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return _kib(facts["MemTotal"]), _kib(facts["MemAvailable"])


def cgroup_limit() -> int | None:
    """Return how many bytes of memory the cgroup allows, if it sets a limit."""
    text = _read("/sys/fs/cgroup/memory.max") or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    limit = int(text) if text.isdigit() else None
    return limit if limit is not None and limit < memory()[0] else None


def core_quota() -> float | None:
    """Return how many cores' time the cgroup allows, if it sets a limit."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


def _processor() -> str:
    models = [line.partition(":")[2].strip() for line in _read("/proc/cpuinfo").splitlines() if "model name" in line]
    return models[0] if models else platform.machine()


def _cores() -> str:
    quota = core_quota()
    allowed = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"
    return allowed if quota is None else f"{allowed}, with the time of {quota:g} (cgroup)"


def _memory() -> str:
    total, available = memory()
    limit = cgroup_limit()
    text = f"{total / GIB:.1f} GiB, {available / GIB:.1f} available"
    return text if limit is None else f"{text}, {limit / GIB:.1f} allowed (cgroup)"


def _shared() -> str:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return "not there (not needed)"
    return f"{status.f_blocks * status.f_frsize / GIB:.1f} GiB (not needed)"


def _limit(number: int) -> str:
    values = ("unlimited" if value == resource.RLIM_INFINITY else str(value) for value in resource.getrlimit(number))
    soft, hard = values
    return soft if soft == hard else f"{soft} (at most {hard})"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
