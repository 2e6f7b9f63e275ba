"""How the locked baseline is measured, on a clock that is moved by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from states import facts, sample

from stepahead.launch import baseline
from stepahead.launch.gantt import Moment
from stepahead.launch.monitor import Monitor


class Supervised:
    """A run of 40 steps a second, as its supervisor sees it, that may be stopped once for some seconds."""

    def __init__(self, stopped_at: int, seconds: float) -> None:
        self.now = 100.0
        self.worked = 0.0
        self.over = False
        self._stopped_at, self._seconds = stopped_at, seconds

    def looks(self) -> Iterator[None]:
        tick = 0
        while not self.over:
            tick += 1
            self.now += 0.25
            self.worked += 0.25
            if tick == self._stopped_at:
                self.now += self._seconds
            yield

    def samples(self, now: float) -> list[dict[str, Any]]:
        return [{**sample(self.worked, stage), "time": now} for stage in range(2)]

    def moments(self) -> list[list[Moment]]:
        return [[], []]

    def stop(self) -> None:
        self.over = True


@pytest.mark.parametrize("stopped_at", [0, 1, 4, 8, 10])
def test_what_was_measured_before_a_stop_does_not_count(stopped_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Supervised(stopped_at, 90.0)
    monkeypatch.setattr(time, "monotonic", lambda: run.now)
    monitor = Monitor(facts(2), window=baseline.MOST_SECONDS)
    baseline._run(run, monitor)  # type: ignore[arg-type]
    assert monitor.state().samples_per_second == pytest.approx(40 * 720, rel=0.05)
