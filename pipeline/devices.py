"""The only place that knows what kind of device a tensor lives on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import UsageError

__all__ = [
    "GpuClock",
    "Point",
    "QueueClock",
    "clock",
    "default_generators",
    "make_current",
    "memory_used",
    "parse_device",
    "pin",
    "point_in_queue",
    "queue_clock",
    "reading_waits",
    "unpin",
]

REANCHOR = 10.0e3
"""Milliseconds after which a GPU's clock is read from a later point: it counts in single precision."""
Point = Any
"""A point in what was queued on a device."""


def parse_device(name: str | torch.device) -> torch.device:
    """Return the device of that name, with its index, after checking that this machine has it; a virtual one computes
    on the CPU."""
    if name == "virtual":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"{name!r} names no device; use 'cpu', 'cuda' or 'cuda:0'") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name} is of a kind that stepahead cannot use; use 'cpu' or 'cuda:0'")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = device.index or 0
    if index >= count:
        raise UsageError(f"device {name} is not there: this machine has {count} CUDA devices; use 'cpu'")
    return torch.device("cuda", index)


def default_generators(device: torch.device) -> tuple[torch.Generator, ...]:
    """Return the generators that dropout and its kin draw from while they compute on the device."""
    if device.type == "cuda":
        torch.cuda.init()
        return (torch.default_generator, torch.cuda.default_generators[device.index or 0])
    return (torch.default_generator,)


def reading_waits(tensor: Tensor) -> bool:
    """Return whether to read one of its values means to wait for all work queued on its device."""
    return tensor.is_cuda


def clock(device: torch.device) -> Callable[[], float]:
    """Return a function that gives the seconds at which all work queued on the device was done."""
    if device.type != "cuda":
        return time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


def make_current(device: torch.device) -> None:
    """Let this process use the device where nothing else is said: on another GPU it would still take memory."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def memory_used(device: torch.device) -> tuple[int, int] | None:
    """Return the bytes that tensors of this process take on a GPU, and the most they took; None elsewhere."""
    if device.type != "cuda":
        return None
    return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)


def point_in_queue(device: torch.device) -> Point | None:
    """Return the point behind all that was queued on a device so far; None where nothing is queued."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def pin(region: Tensor) -> bool:
    """Let GPUs copy to and from a region of memory directly, and return whether they can; not without a GPU in use."""
    if not torch.cuda.is_initialized():
        return False
    if int(_runtime().cudaHostRegister(region.data_ptr(), region.nbytes, 0)) == 0:
        return True
    with suppress(RuntimeError):  # CUDA keeps the error until something asks for it: better here than in a layer
        torch.zeros(1, device="cuda")
    return False


def unpin(region: Tensor) -> None:
    """Take back `pin`."""
    _runtime().cudaHostUnregister(region.data_ptr())


def _runtime() -> Any:
    return torch.cuda.cudart()


class QueueClock(Protocol):
    """Tells when a device passed points of its queue, in nanoseconds of the machine's monotonic clock."""

    def point(self) -> Point:
        """Return the point behind all that was queued so far."""
        ...

    def passed(self, point: Point) -> bool:
        """Return whether the device has done all that was queued before."""
        ...

    def times(self, begin: Point, end: Point) -> tuple[int, int]:
        """Wait until the device passed both, and return when; they may not be used again."""
        ...


class GpuClock:
    """The clock of one GPU: CUDA events, and one of them whose time is known."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._free: list[torch.cuda.Event] = []
        self._anchor: torch.cuda.Event = self.point()
        self._anchor.synchronize()
        self._anchor_at = time.perf_counter_ns()

    def point(self) -> torch.cuda.Event:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def passed(self, point: torch.cuda.Event) -> bool:
        return bool(point.query())

    def times(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> tuple[int, int]:
        end.synchronize()
        since = self._anchor.elapsed_time(end)
        began, ended = self._after(self._anchor.elapsed_time(begin)), self._after(since)
        self._free.append(begin)
        if since > REANCHOR:
            self._anchor, self._anchor_at, end = end, ended, self._anchor
        self._free.append(end)
        return began, ended

    def _after(self, milliseconds: float) -> int:
        return self._anchor_at + round(milliseconds * 1e6)


def queue_clock(device: torch.device) -> QueueClock | None:
    """Return the clock of a device that only queues what it is told; None for one that does it at once."""
    return GpuClock(device) if device.type == "cuda" else None
