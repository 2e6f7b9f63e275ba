"""Spans: where a worker's time goes.

useful   forward, backward, optimizer       what plain backprop does too
tax      predict, learn, replay             the price of not waiting
idle     wait_input, wait_credit, wait_gradient, send (called "link"), and the rest ("other"): evaluations, the loop

The three add up to the wall time. With telemetry off nothing is timed, and nobody knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

from stepahead.pipeline import TAX, USEFUL, Part

from .telemetry import INDEX, NOTHING, TOTALS, Telemetry

__all__ = ["NAMES", "SpanName", "Spans", "Wait", "parts_of", "seconds_of"]

Wait = Literal["wait_input", "wait_credit", "wait_gradient"]
"""Why a worker has nothing to do: no batch has come, no room below or above, no gradient though one is due."""
SpanName = Part | Wait | Literal["send", "evaluate"]
NAMES: tuple[SpanName, ...] = (*get_args(Part), *get_args(Wait), "send", "evaluate")
CAUSES = (*get_args(Wait), "link", "other")
DOING, SINCE = INDEX["doing"], INDEX["since"]
OFF = nullcontext()


class _Span:
    """Times one thing, again and again; by hand, for a generator as a context manager costs more than what it times.

    There is one at a time: within it no other may begin.
    """

    __slots__ = ("_index", "_spans")

    def __init__(self, spans: Spans, index: int) -> None:
        self._spans = spans
        self._index = index

    def __enter__(self) -> None:
        spans = self._spans
        spans.numbers[SINCE] = spans.now()
        spans.numbers[DOING] = self._index

    def __exit__(self, *error: object) -> None:
        spans = self._spans
        start = spans.numbers[SINCE]
        end = spans.now()
        spans.numbers[DOING] = NOTHING
        spans.numbers[TOTALS + self._index] += end - start
        spans.telemetry.note(start, end, spans.step, self._index)


class Spans:
    """Adds up nanoseconds by name, in telemetry's memory; `spans(name)` is a context that times what is inside it.

    Telemetry that keeps no events is off.
    """

    def __init__(self, telemetry: Telemetry | None = None, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self.telemetry = telemetry or Telemetry()
        self.numbers = self.telemetry.numbers
        self.on = self.telemetry.events > 0
        self.now = now
        self.step = 0
        """The batch that is worked on."""
        self._spans: dict[SpanName, AbstractContextManager[None]] = {
            name: _Span(self, index) if self.on else OFF for index, name in enumerate(NAMES)
        }

    def __call__(self, name: SpanName) -> AbstractContextManager[None]:
        return self._spans[name]

    def add(self, name: SpanName, begin: int) -> None:
        """Take the time since then for a span that has just ended; for what is only known afterwards."""
        if self.on:
            index, end = NAMES.index(name), self.now()
            self.numbers[TOTALS + index] += end - begin
            self.telemetry.note(begin, end, self.step, index)

    def begin(self) -> None:
        """Count the wall time from here; what was before is forgotten."""
        self.telemetry["begun"] = self.now()
        for index in range(len(NAMES)):
            self.numbers[TOTALS + index] = 0

    def resume(self) -> None:
        """Count what is being done from here: the process may have been stopped, and nobody knows since when."""
        self.numbers[SINCE] = self.now()

    def end(self) -> None:
        """Count the wall time no further."""
        self.telemetry["ended"] = self.now()

    @property
    def wall(self) -> float:
        """Seconds since it began."""
        begun = self.telemetry["begun"]
        return ((self.telemetry["ended"] or self.now()) - begun) / 1e9 if begun else 0.0

    def shares(self) -> dict[str, float | dict[str, float] | None]:
        """Return useful, tax, and idle by cause, as shares of the wall time: they add up to 1; None for all if off."""
        if not self.on:
            return dict.fromkeys(("useful", "tax", "idle"))
        wall = self.wall
        parts = parts_of(self.seconds, wall)
        share = {name: seconds / wall if wall > 0 else float(name == "other") for name, seconds in parts.items()}
        return {"useful": share["useful"], "tax": share["tax"], "idle": {cause: share[cause] for cause in CAUSES}}

    @property
    def seconds(self) -> dict[str, float]:
        """The totals so far."""
        return seconds_of(self.telemetry, self.now())


def seconds_of(telemetry: Telemetry, now: int) -> dict[str, float]:
    """Return the seconds that each span has taken until `now`."""
    totals = telemetry.totals(len(NAMES), now)
    return {name: total / 1e9 for name, total in zip(NAMES, totals, strict=True)}


def parts_of(seconds: Mapping[str, float], wall: float) -> dict[str, float]:
    """Return the seconds of each part of the wall time, from those of the spans."""
    useful, tax = sum(seconds[name] for name in USEFUL), sum(seconds[name] for name in TAX)
    waits, link = {name: seconds[name] for name in get_args(Wait)}, seconds["send"]
    other = wall - useful - tax - link - sum(waits.values())
    return {"useful": useful, "tax": tax, **waits, "link": link, "other": other}
