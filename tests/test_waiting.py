"""When one who waits looks, and when it dozes: with a clock and a bell that the test has in hand."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from stepahead.workers import waiting as waiting_module
from stepahead.workers.waiting import LOOK, Waitable, Waiter

TICK = LOOK / 100


class Clock:
    """Time passes with each look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += TICK
        return self.now


class End(Waitable):
    """Something comes once, when it is due; one that dozes is rung for then."""

    rings = False

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.due: float | None = None
        self.naps = 0

    def fileno(self) -> int:
        return self.bell

    def refresh(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    @property
    def gone(self) -> bool:
        return False

    def news(self) -> int:
        return int(self.due is not None and self.clock.now >= self.due)

    def doze(self, dozing: bool) -> None:
        if dozing and not self.news():
            self.naps += 1
            if self.due is not None:
                self.clock.now = self.due
                os.eventfd_write(self.bell, 1)


class Poll:
    """Hears nothing, and notes for how long it was to listen."""

    def __init__(self, heard: list[float]) -> None:
        self.heard = heard

    def register(self, *_: object) -> None: ...

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.heard.append(timeout)
        return []

    def close(self) -> None: ...


class Waiting:
    """One who waits for one end."""

    def __init__(self, clock: Clock, *others: Waitable, **options: float) -> None:
        self.end = End(clock)
        self.waiter = Waiter([self.end, *others], **options)

    def close(self) -> None:
        self.waiter.close()
        os.close(self.end.bell)

    def naps(self, *waits: float) -> list[int]:
        """Return how often it dozed in each of these waits, when something comes after so many seconds."""
        counts: list[int] = []
        for seconds in waits:
            self.end.due, self.end.naps = None, 0
            self.waiter.look()
            self.end.due = self.end.clock.now + seconds
            assert self.waiter.wait(10.0)
            counts.append(self.end.naps)
        return counts


Make = Callable[..., Waiting]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    clock = Clock()
    monkeypatch.setattr(waiting_module, "time", clock)
    with ExitStack() as kept:

        def make_waiting(*others: Waitable, **options: float) -> Waiting:
            made = Waiting(clock, *others, **options)
            kept.callback(made.close)
            return made

        yield make_waiting


SHORT, MIDDLE, LONG = LOOK / 2, 1.5 * LOOK, 2.5 * LOOK


def test_it_looks_after_a_brief_wait_and_dozes_at_once_after_a_long_one(make: Make) -> None:
    assert make().naps(SHORT, MIDDLE, SHORT, LONG, SHORT, SHORT) == [1, 1, 0, 1, 1, 0]


def test_a_wait_in_which_nothing_came_was_not_brief(make: Make) -> None:
    waiting = make()
    waiting.naps(SHORT)
    waiting.end.due = None
    waiting.waiter.look()
    assert not waiting.waiter.wait(0.0)
    assert waiting.naps(SHORT) == [1]


def test_it_does_not_look_where_all_rings(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(End, "rings", True)
    assert make().naps(SHORT, SHORT) == [1, 1]


def test_it_looks_where_one_of_several_does_not_always_ring(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bell = End(make().end.clock)
    monkeypatch.setattr(with_bell, "rings", True, raising=False)
    assert make(with_bell).naps(SHORT, SHORT) == [1, 0]


def test_looking_can_be_left_out_or_always_be_done(make: Make) -> None:
    assert make(look=0.0).naps(SHORT, SHORT) == [1, 1]
    assert make(spin=2 * LONG).naps(LONG, SHORT, LONG) == [0, 0, 0]


def test_who_has_looked_dozes_for_the_rest_of_its_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dozed: list[float] = []
    monkeypatch.setattr(select, "epoll", lambda: Poll(dozed))
    assert not make(spin=LOOK).waiter.wait(LONG)
    assert dozed == [pytest.approx(LONG - LOOK)]


def test_who_looks_does_not_look_for_longer_than_it_waits(make: Make) -> None:
    waiting = make(spin=1.0)
    begun = waiting.end.clock.now
    assert not waiting.waiter.wait(SHORT)
    assert waiting.end.clock.now - begun < LOOK
