"""How a trial is measured, the locked baseline's for example, on a clock that is moved by hand."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import pytest
from states import facts, sample

from stepahead.launch.breakdown import break_down
from stepahead.launch.gantt import Moment
from stepahead.launch.monitor import Monitor
from stepahead.launch.trial import Limits, Watch


class Supervised:
    """A run of 40 steps a second, or fewer, as its supervisor sees it, that may be stopped once for some seconds."""

    def __init__(self, stopped_at: int, seconds: float, *, step: float = 0.025) -> None:
        self.now = 100.0
        self.worked = 0.0
        self._stopped_at, self._seconds = stopped_at, seconds
        self._step = step
        self._steps, self._counted = 0, 0.0

    def run(self, limits: Limits) -> Watch:
        """Let a trial watch it for as long as that goes on."""
        watch = Watch(limits, Monitor(facts(2), window=limits.most_seconds), 1)
        watch.started(self.now)
        for tick in range(1, 10**6):
            self.now += 0.25
            self.worked += 0.25
            if tick == self._stopped_at:
                self.now += self._seconds
            if watch.is_enough(self.now, self.samples(), self.moments()):
                break
        return watch

    def samples(self) -> list[dict[str, Any]]:
        steps = int(self.worked / self._step)
        if steps != self._steps:  # what a worker has told keeps its time when it is stopped
            self._steps, self._counted = steps, self.now - self.worked + steps * self._step
        count = {"steps": steps, "samples": 720 * steps, "counted": round(self._counted * 1e9)}
        return [{**sample(self.worked, stage), "time": self.now, **count} for stage in range(2)]

    def moments(self) -> list[list[Moment]]:
        """Return the spans that have ended since the last look: each step is half forward, half backward."""
        look, half = 0.25, self._step / 2
        found: list[Moment] = []
        for part in range(int((self.worked - look) / half), int(self.worked / half)):
            begin, end = round(part * half * 1e9), round((part + 1) * half * 1e9)
            found.append((begin, end, part // 2, "backward" if part % 2 else "forward"))
        return [found, list(found)]


@pytest.mark.parametrize("stopped_at", [0, 1, 4, 8, 10, 18, 30])
@pytest.mark.parametrize("step", [0.025, 1.0, 3.0])
def test_what_was_measured_before_a_stop_does_not_count(stopped_at: int, step: float) -> None:
    limits = Limits(seconds=10.0, least_steps=3, most_seconds=120.0)
    state = Supervised(stopped_at, 90.0, step=step).run(limits).monitor.state()
    assert state.samples_per_second == pytest.approx(720 / step)


@pytest.mark.parametrize("step", [0.05, 0.3, 0.5, 2.0])
def test_slow_steps_keep_all_their_spans(step: float) -> None:
    stages = break_down(Supervised(0, 0.0, step=step).run(Limits()).moments)
    assert stages is not None
    for stage in stages:
        assert stage.wall == pytest.approx(1000 * step)
        assert stage.useful == pytest.approx(stage.wall)


def test_shares_are_of_whole_steps() -> None:
    class Halves(Supervised):
        """The first half of each step is useful, the other one is not."""

        def samples(self) -> list[dict[str, Any]]:
            done, begun = divmod(self.worked, self._step)
            useful = done * self._step / 2 + min(begun, self._step / 2)
            seconds = {"useful": useful, "other": self.worked - useful}
            return [{**each, "seconds": seconds} for each in super().samples()]

    state = Halves(0, 0.0, step=2.0).run(Limits(seconds=4.0, least_steps=1)).monitor.state()
    assert [stage.useful for stage in state.stages] == [0.5, 0.5]


def test_a_trial_ends_when_the_loss_is_where_it_is_to_be() -> None:
    losses = chain([3.0, 2.5, 2.0], repeat(1.5))

    class Falling(Supervised):
        def samples(self) -> list[dict[str, Any]]:
            loss, found = next(losses), super().samples()
            return [{**each, "loss": loss} for each in found]

    watch = Falling(0, 0.0).run(Limits(seconds=60.0, target_loss=1.7))
    losses_seen = [loss for _, _, loss in watch.curve]
    assert losses_seen[:4] == [3.0, 2.5, 2.0, 1.5]
    assert len(losses_seen) < 12
    assert watch.monitor.state().samples_per_second > 0  # as it went on for a while


@pytest.mark.parametrize(
    ("limits", "seconds"), [(Limits(seconds=5.0), 5.75), (Limits(seconds=1.0, least_steps=400), 10)]
)
def test_a_trial_goes_on_for_so_many_seconds_and_steps(limits: Limits, seconds: float) -> None:
    run = Supervised(0, 0.0)
    run.run(limits)
    assert run.worked == pytest.approx(seconds, abs=0.5)
