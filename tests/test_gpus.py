"""Readings of GPUs, with a library that is made up: there is none here."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from stepahead.launch.gpus import Gpus


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a library of three GPUs, of which the last one says nothing."""

    def utilization(handle: int) -> SimpleNamespace:
        if handle == 2:
            raise RuntimeError("not supported")
        made.asked += 1
        return SimpleNamespace(gpu=50 + handle)

    made = SimpleNamespace(
        asked=0,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda name: int(name[-1]),
        nvmlDeviceGetUtilizationRates=utilization,
        nvmlDeviceGetTemperature=lambda handle, sensor: 60 + handle,
    )
    module = ModuleType("pynvml")
    module.__dict__.update(vars(made))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def test_each_device_has_its_own_reading(library: SimpleNamespace) -> None:
    gpus = Gpus(("cuda:1", "cpu", "cuda:0", "cuda:2"))
    assert gpus.read() == [(0.51, 61.0), None, (0.5, 60.0), None]


@pytest.mark.parametrize("visible", ["1,0", "GPU-1,GPU-0"])
def test_visible_devices_are_numbered_anew(
    visible: str, library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Gpus(("cuda:0",)).read() == [(0.51, 61.0)]


def test_they_are_asked_once_a_second(library: SimpleNamespace) -> None:
    clock = Clock()
    gpus = Gpus(("cuda:0",), clock)
    for _ in range(5):
        gpus.read()
    assert library.asked == 1
    clock.now += 1.0
    gpus.read()
    assert library.asked == 2


def test_without_a_library_or_a_gpu_there_are_no_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpus(("cuda:0", "cuda:1")).read() == [None, None]
    assert Gpus(("cpu",)).read() == [None]
