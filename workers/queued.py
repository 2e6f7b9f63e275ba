"""Spans of a worker on a GPU, which queues what it is told: when that is done is only known later.

    host      | forward | backward |  wait_input ............ | forward ..
    device         | forward  |  backward   |   (idle)          | forward ..

What is told to the device lies between two points of its queue. When it has passed them, the span is noted with the
device's own times. What the host does by itself counts from when the device had nothing left to do: a worker that waits
while its GPU computes is not idle. So no two spans overlap, and useful, tax and idle add up to the wall time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import get_args

from stepahead.pipeline import Part
from stepahead.pipeline.devices import Point, QueueClock

from .spans import DOING, NAMES, SINCE, SpanName, Spans
from .telemetry import NOTHING, TOTALS, Telemetry

__all__ = ["QueuedSpans"]

ON_DEVICE: tuple[SpanName, ...] = (*get_args(Part), "evaluate")


class QueuedSpans(Spans):
    """Adds up what a device does, and what its host does meanwhile.

    Args:
        telemetry, now: As for all spans.
        clock: The device's.
    """

    def __init__(self, telemetry: Telemetry, clock: QueueClock, now: Callable[[], int] = time.perf_counter_ns) -> None:
        super().__init__(telemetry, now)
        self._clock = clock
        self._pending: deque[tuple[int, int, Point, Point, bool]] = deque()
        """Spans that are not noted yet: index, step, begin and end, and whether those are points of the device's."""
        self._known_until = 0
        """Up to when it is known what was done."""
        if self.on:
            for index, name in enumerate(NAMES):
                self._spans[name] = (_DeviceSpan if name in ON_DEVICE else _HostSpan)(self, index)

    def begin(self) -> None:
        self._settle(wait=True)
        super().begin()
        self._known_until = int(self.telemetry["begun"])

    def end(self) -> None:
        self._settle(wait=True)
        super().end()

    def add(self, name: SpanName, begin: int) -> None:
        if self.on:
            self.on_host(NAMES.index(name), begin)

    def on_device(self, index: int, begin: Point) -> None:
        """Take note of what was told to the device since a point."""
        self._pending.append((index, self.step, begin, self._clock.point(), True))
        self._settle()

    def on_host(self, index: int, begin: int) -> None:
        """Take note of what the host did."""
        self._pending.append((index, self.step, begin, self.now(), False))
        self._settle()

    def point(self) -> Point:
        return self._clock.point()

    def _settle(self, *, wait: bool = False) -> None:
        """Note the spans that are over; all of them, if that is worth waiting for."""
        while self._pending:
            index, step, begin, end, queued = self._pending[0]
            if queued:
                if not wait and not self._clock.passed(end):
                    return
                begin, end = self._clock.times(begin, end)
            self._pending.popleft()
            begin = max(begin, self._known_until)
            if end > begin:
                self.numbers[TOTALS + index] += end - begin
                self.telemetry.note(begin, end, step, index)
                self._known_until = end


class _DeviceSpan:
    """What is inside is told to the device."""

    __slots__ = ("_begin", "_index", "_spans")

    def __init__(self, spans: QueuedSpans, index: int) -> None:
        self._spans = spans
        self._index = index

    def __enter__(self) -> None:
        self._begin = self._spans.point()

    def __exit__(self, *error: object) -> None:
        self._spans.on_device(self._index, self._begin)


class _HostSpan:
    """What is inside the host does by itself; it is shown from when it begins."""

    __slots__ = ("_index", "_spans")

    def __init__(self, spans: QueuedSpans, index: int) -> None:
        self._spans = spans
        self._index = index

    def __enter__(self) -> None:
        numbers = self._spans.numbers
        numbers[SINCE] = self._spans.now()
        numbers[DOING] = self._index

    def __exit__(self, *error: object) -> None:
        numbers = self._spans.numbers
        numbers[DOING] = NOTHING
        self._spans.on_host(self._index, numbers[SINCE])
