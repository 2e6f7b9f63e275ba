"""How busy and how hot the GPUs are, where there are some and NVIDIA's library is installed (extra `gpu`).

It says in which share of the last second some kernel ran: to be shown beside a stage's useful share, not for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

__all__ = ["Gpus"]

EVERY = 1.0
"""Seconds between two readings: they are slow, and slow a GPU down that is asked too often."""


class Gpus:
    """Reads the GPUs of some devices; None for a device that is none, or says nothing."""

    def __init__(self, devices: Sequence[str], now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._read_at = -EVERY
        self._last: list[tuple[float, float] | None] = [None] * len(devices)
        self._library: Any = None
        self._handles: list[Any] = [None] * len(devices)
        if any(device.startswith("cuda") for device in devices):
            with suppress(Exception):  # no library, no driver, a device that it does not know
                self._library = import_module("pynvml")
                self._library.nvmlInit()
                self._handles = [self._handle(device) for device in devices]

    def read(self) -> list[tuple[float, float] | None]:
        """Return utilisation as a share and temperature in degrees Celsius, of each device."""
        if self._library is not None and self._now() - self._read_at >= EVERY:
            self._read_at = self._now()
            self._last = [None if handle is None else self._reading(handle) for handle in self._handles]
        return self._last

    def _handle(self, device: str) -> Any:
        if not device.startswith("cuda"):
            return None
        index = int(device.partition(":")[2] or 0)
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if not visible:
            return self._library.nvmlDeviceGetHandleByIndex(index)
        name = visible[index].strip()
        if name.isdigit():
            return self._library.nvmlDeviceGetHandleByIndex(int(name))
        return self._library.nvmlDeviceGetHandleByUUID(name)

    def _reading(self, handle: Any) -> tuple[float, float] | None:
        try:
            busy = self._library.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            celsius = self._library.nvmlDeviceGetTemperature(handle, self._library.NVML_TEMPERATURE_GPU)
        except Exception:  # NVML raises its own kinds, and a device that is lost must not end the run
            return None
        return float(busy), float(celsius)
