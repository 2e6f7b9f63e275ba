"""Spans: where a worker's time goes, as totals of seconds by name.

useful   forward, backward, optimizer       what plain backprop does too
tax      predict, learn                     the price of not waiting
idle     wait_input, wait_credit, wait_gradient, send (on a link), and the rest: evaluations, start-up, loop
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

from stepahead.pipeline import TAX, USEFUL, Part

__all__ = ["SpanName", "Spans", "Wait"]

Wait = Literal["wait_input", "wait_credit", "wait_gradient"]
"""Why a worker has nothing to do: no batch has come, no room below or above, no gradient though one is due."""
SpanName = Part | Wait | Literal["send", "evaluate"]


class Spans:
    """Adds up seconds by name; `spans(name)` is a context that times what is inside it."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._now = now
        self._begun: float | None = None

    @contextmanager
    def __call__(self, name: SpanName) -> Generator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - start

    def begin(self) -> None:
        """Count the wall time from here; what was before is forgotten."""
        self._begun = self._now()
        self.seconds.clear()

    @property
    def wall(self) -> float:
        """Seconds since it began."""
        return 0.0 if self._begun is None else self._now() - self._begun

    def shares(self) -> dict[str, float | dict[str, float]]:
        """Return useful, tax, and idle by cause, as shares of the wall time: they add up to 1."""
        wall = self.wall
        if wall <= 0:
            return {"useful": 0.0, "tax": 0.0, "idle": {"other": 1.0}}
        share = {name: seconds / wall for name, seconds in self.seconds.items()}
        useful = sum(share.get(name, 0.0) for name in USEFUL)
        tax = sum(share.get(name, 0.0) for name in TAX)
        waits = {name: share.get(name, 0.0) for name in ("wait_input", "wait_credit", "wait_gradient")}
        link = share.get("send", 0.0)
        other = 1.0 - useful - tax - link - sum(waits.values())
        return {"useful": useful, "tax": tax, "idle": {**waits, "link": link, "other": other}}
