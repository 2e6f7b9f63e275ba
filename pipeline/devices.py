"""The only place that knows what kind of device a tensor lives on."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import UsageError

__all__ = ["clock", "default_generators", "parse_device", "reading_waits"]


def parse_device(name: str | torch.device) -> torch.device:
    """Return the device of that name, with its index, after checking that this machine has it."""
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
