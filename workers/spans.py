"""Spans: where a worker's time goes, as totals of seconds by name.

useful   forward, backward, optimizer       what plain backprop does too
tax      predict, learn                     the price of not waiting
idle     wait_input, wait_credit, wait_gradient, send (on a link), and the rest: evaluations, start-up, loop
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, get_args

from stepahead.pipeline import TAX, USEFUL, Part

__all__ = ["SpanName", "Spans", "Wait"]

Wait = Literal["wait_input", "wait_credit", "wait_gradient"]
"""Why a worker has nothing to do: no batch has come, no room below or above, no gradient though one is due."""
SpanName = Part | Wait | Literal["send", "evaluate"]
NAMES: tuple[SpanName, ...] = (*get_args(Part), *get_args(Wait), "send", "evaluate")


class _Span:
    """Times one thing, again and again; by hand, for a generator as a context manager costs more than what it times."""

    __slots__ = ("_now", "_start", "seconds")

    def __init__(self, now: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._now = now
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *error: object) -> None:
        self.seconds += self._now() - self._start


class Spans:
    """Adds up seconds by name; `spans(name)` is a context that times what is inside it."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._spans = {name: _Span(now) for name in NAMES}
        self._begun: float | None = None

    def __call__(self, name: SpanName) -> _Span:
        return self._spans[name]

    @property
    def seconds(self) -> dict[str, float]:
        """The totals so far."""
        return {name: span.seconds for name, span in self._spans.items()}

    def begin(self) -> None:
        """Count the wall time from here; what was before is forgotten."""
        self._begun = self._now()
        for span in self._spans.values():
            span.seconds = 0.0

    @property
    def wall(self) -> float:
        """Seconds since it began."""
        return 0.0 if self._begun is None else self._now() - self._begun

    def shares(self) -> dict[str, float | dict[str, float]]:
        """Return useful, tax, and idle by cause, as shares of the wall time: they add up to 1."""
        wall = self.wall
        share = {name: seconds / wall if wall > 0 else 0.0 for name, seconds in self.seconds.items()}
        useful, tax = sum(share[name] for name in USEFUL), sum(share[name] for name in TAX)
        waits, link = {name: share[name] for name in get_args(Wait)}, share["send"]
        other = 1.0 - useful - tax - link - sum(waits.values())
        return {"useful": useful, "tax": tax, "idle": {**waits, "link": link, "other": other}}
