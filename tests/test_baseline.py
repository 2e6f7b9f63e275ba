"""How the locked baseline is measured, on a clock that is moved by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from states import facts, sample

from stepahead.launch import baseline
from stepahead.launch.breakdown import break_down
from stepahead.launch.gantt import Moment
from stepahead.launch.monitor import Monitor


class Supervised:
    """A run of 40 steps a second, or fewer, as its supervisor sees it, that may be stopped once for some seconds."""

    def __init__(self, stopped_at: int, seconds: float, *, step: float = 0.025) -> None:
        self.now = 100.0
        self.worked = 0.0
        self.over = False
        self._stopped_at, self._seconds = stopped_at, seconds
        self._step = step

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
        steps = int(self.worked / self._step)
        return [{**sample(self.worked, stage), "time": now, "steps": steps} for stage in range(2)]

    def moments(self) -> list[list[Moment]]:
        """Return the spans that have ended since the last look: each step is half forward, half backward."""
        look, half = 0.25, self._step / 2
        found: list[Moment] = []
        for part in range(int((self.worked - look) / half), int(self.worked / half)):
            begin, end = round(part * half * 1e9), round((part + 1) * half * 1e9)
            found.append((begin, end, part // 2, "backward" if part % 2 else "forward"))
        return [found, list(found)]

    def stop(self) -> None:
        self.over = True


@pytest.mark.parametrize("stopped_at", [0, 1, 4, 8, 10])
def test_what_was_measured_before_a_stop_does_not_count(stopped_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Supervised(stopped_at, 90.0)
    monkeypatch.setattr(time, "monotonic", lambda: run.now)
    monitor = Monitor(facts(2), window=baseline.MOST_SECONDS)
    baseline._run(run, monitor)  # type: ignore[arg-type]
    assert monitor.state().samples_per_second == pytest.approx(40 * 720, rel=0.05)


@pytest.mark.parametrize("step", [0.05, 0.3, 0.5, 2.0])
def test_slow_steps_keep_all_their_spans(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Supervised(0, 0.0, step=step)
    monkeypatch.setattr(time, "monotonic", lambda: run.now)
    stages = break_down(baseline._run(run, Monitor(facts(2), window=baseline.MOST_SECONDS)))  # type: ignore[arg-type]
    assert stages is not None
    for stage in stages:
        assert stage.wall == pytest.approx(1000 * step)
        assert stage.useful == pytest.approx(stage.wall)
