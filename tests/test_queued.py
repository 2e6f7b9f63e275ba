"""Spans of a worker whose device queues what it is told: the device's own times, and idle only what it had no work."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepahead.pipeline.devices import Point, pin, point_in_queue, queue_clock
from stepahead.workers import Telemetry, read_sample
from stepahead.workers.queued import ON_DEVICE, QueuedSpans
from stepahead.workers.spans import NAMES, SpanName, parts_of


@dataclass
class Device:
    """A device that does one thing after the other, and the host's clock, both in nanoseconds and moved by hand."""

    now: int = 10**9
    free: int = 0
    """When it will have done all that it was told."""

    def __call__(self) -> int:
        return self.now

    def run(self, work: int) -> None:
        self.free = max(self.free, self.now) + work

    def point(self) -> Point:
        return max(self.free, self.now)

    def passed(self, point: Point) -> bool:
        return bool(point <= self.now)

    def times(self, begin: Point, end: Point) -> tuple[int, int]:
        self.now = max(self.now, end)
        return begin, end


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def spans(device: Device) -> QueuedSpans:
    spans = QueuedSpans(Telemetry(64), device, device)
    spans.begin()
    return spans


def tell(spans: QueuedSpans, device: Device, name: SpanName, work: int, host: int = 1) -> None:
    """Queue work, which takes the host some time too."""
    with spans(name):
        device.run(work)
        device.now += host


def wait(spans: QueuedSpans, device: Device, nanoseconds: int, name: SpanName = "wait_input") -> None:
    with spans(name):
        device.now += nanoseconds


def test_a_span_lasts_as_long_as_the_device_took(spans: QueuedSpans, device: Device) -> None:
    tell(spans, device, "forward", 300)
    tell(spans, device, "backward", 500)
    wait(spans, device, 1000)
    spans.end()
    shares = spans.shares()
    assert spans.seconds["forward"] == pytest.approx(300e-9)
    assert spans.seconds["backward"] == pytest.approx(500e-9)
    assert spans.seconds["wait_input"] == pytest.approx((1002 - 800) * 1e-9)  # it was idle only after it had computed
    assert shares["useful"] == pytest.approx(800 / 1002)


def test_who_waits_while_the_device_computes_is_not_idle(spans: QueuedSpans, device: Device) -> None:
    tell(spans, device, "forward", 5000)
    wait(spans, device, 1000)
    wait(spans, device, 1000, "send")
    assert read_sample(spans.telemetry, device.now)["seconds"]["useful"] == 0.0  # nobody knows yet
    wait(spans, device, 4000)
    seconds = spans.seconds
    assert seconds["wait_input"] == pytest.approx(1001e-9)
    assert seconds["send"] == 0.0
    assert seconds["forward"] == pytest.approx(5000e-9)


def test_a_gap_between_what_it_was_told_is_other(spans: QueuedSpans, device: Device) -> None:
    tell(spans, device, "forward", 100)
    device.now += 400
    tell(spans, device, "backward", 100)
    spans.end()
    idle = spans.shares()["idle"]
    assert isinstance(idle, dict)
    assert idle["other"] == pytest.approx(1 - 200 / (spans.wall * 1e9))


def test_what_is_open_is_shown(spans: QueuedSpans, device: Device) -> None:
    spans("wait_gradient").__enter__()
    device.now += 2 * 10**9
    sample = read_sample(spans.telemetry, device.now)
    assert (sample["doing"], sample["doing_seconds"]) == ("wait_gradient", 2.0)


def test_events_have_the_steps_in_which_they_were_told(spans: QueuedSpans, device: Device) -> None:
    for step in range(3):
        spans.step = step
        tell(spans, device, "forward", 1000)
    assert spans.telemetry.read_events(0)[0] == []
    spans.end()
    events, _, _ = spans.telemetry.read_events(0)
    assert [(event.step, event.end - event.begin) for event in events] == [(0, 1000), (1, 1000), (2, 1000)]
    assert events[0].end <= events[1].begin


Did = tuple[SpanName, int, int]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 50), st.integers(0, 50)), max_size=40))
def test_the_shares_add_up_to_one_whatever_overlaps(did: list[Did]) -> None:
    device = Device()
    spans = QueuedSpans(Telemetry(64), device, device)
    spans.begin()
    device.now += 1
    for name, work, host in did:
        tell(spans, device, name, work if name in ON_DEVICE else 0, host)
    spans.end()
    parts = parts_of(spans.seconds, spans.wall)
    assert sum(parts.values()) == pytest.approx(spans.wall)
    assert min(parts.values()) >= -1e-12
    told = sum(work for name, work, _ in did if name in ON_DEVICE)
    assert sum(spans.seconds[name] for name in ON_DEVICE) >= told * 1e-9 - 1e-12


def test_a_cpu_does_things_at_once() -> None:
    cpu = torch.device("cpu")
    assert queue_clock(cpu) is None
    assert point_in_queue(cpu) is None


def test_without_a_gpu_in_use_nothing_is_pinned() -> None:
    if not torch.cuda.is_initialized():
        assert not pin(torch.zeros(4096, dtype=torch.uint8))
