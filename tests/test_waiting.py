"""When one who waits looks, and when it dozes: with a clock and a bell that the test has in hand."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
import torch

from stepahead.pipeline import Gradient, GradientKind
from stepahead.workers import SharedReceiver, SharedSender, make_sockets
from stepahead.workers import waiting as waiting_module
from stepahead.workers.waiting import LOOK, MOST_REST, Waitable, Waiter

TICK = LOOK / 100
SHORT, LONG = LOOK / 2, 2.5 * LOOK


class Clock:
    """Time passes with each look at it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.on_tick: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        self.now += TICK
        self.on_tick()
        return self.now


class End(Waitable):
    """Something comes once, when it is due; one that dozes is rung for then."""

    rings = False

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.due: float | None = None
        self.naps = self.asked = 0

    def fileno(self) -> int:
        return self.bell

    def refresh(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    @property
    def gone(self) -> bool:
        return False

    @property
    def came(self) -> bool:
        return self.due is not None and self.clock.now >= self.due

    def news(self) -> int:
        self.asked += 1
        return int(self.came)

    def doze(self, dozing: bool) -> None:
        if dozing and not self.came:
            self.naps += 1
            if self.due is not None:
                self.clock.now = self.due
                os.eventfd_write(self.bell, 1)


class Rung(End):
    """An end for which all rings."""

    rings = True


class Brought(Rung):
    """An end to which a thread brings what comes."""

    brought = True


class Hasty(End):
    """Something comes just before the waiter dozes, so nobody rings."""

    def doze(self, dozing: bool) -> None:
        if dozing:
            self.due = self.clock.now


class Poll:
    """Hears nothing, and notes for how long it was to listen."""

    def __init__(self, listened: list[float]) -> None:
        self.listened = listened

    def register(self, *_: object) -> None: ...

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.listened.append(timeout)
        return []

    def close(self) -> None: ...


@pytest.fixture
def kept() -> Iterator[ExitStack]:
    """Closes what a test has made."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting_module, "time", clock)
    return clock


@pytest.fixture
def make(clock: Clock, kept: ExitStack) -> Callable[[type[End]], End]:
    def make_end(kind: type[End]) -> End:
        end = kind(clock)
        kept.callback(os.close, end.bell)
        return end

    return make_end


Make = Callable[[type[End]], End]


def naps(waiter: Waiter, end: End, *waits: float) -> list[int]:
    """Return how often an end dozed in each of these waits, when something comes after so many seconds."""
    counts: list[int] = []
    for seconds in waits:
        end.due, end.naps = None, 0
        waiter.wait(0.0)  # what was news is none any more
        end.naps, end.due = 0, end.clock.now + seconds
        assert waiter.wait(10.0)
        counts.append(end.naps)
    return counts


def test_it_looks_before_it_dozes(make: Make) -> None:
    end = make(End)
    with Waiter([end]) as waiter:
        assert naps(waiter, end, SHORT, SHORT) == [0, 0]


def test_after_a_look_in_vain_it_dozes_at_once_for_some_time(make: Make) -> None:
    end = make(End)
    with Waiter([end]) as waiter:
        assert naps(waiter, end, 1.1 * LOOK, SHORT) == [1, 1]
        end.clock.now += LOOK
        assert naps(waiter, end, SHORT) == [0]


def rests_in_looks(waiter: Waiter, end: End, number: int) -> list[float]:
    """Return how long each rest lasted that follows one of so many looks in vain, in looks."""
    found: list[float] = []
    end.due, begun = None, 0.0
    waiter.wait(0.0)  # what was news is none any more
    while len(found) < number:
        before = end.clock.now
        assert not waiter.wait(2 * LOOK)
        if end.clock.now - before > LOOK:
            found.append((before - begun) / LOOK)
            begun = end.clock.now
        end.clock.now += LOOK / 10
    return found[1:]  # no look came before the first


def test_it_rests_for_longer_with_each_look_in_vain_until_one_is_not(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "epoll", lambda: Poll([]))
    end = make(End)
    waiter = Waiter([end])
    assert rests_in_looks(waiter, end, 9) == pytest.approx([1, 3, 7, 15, 31, 63, MOST_REST, MOST_REST], abs=0.2)
    end.clock.now += MOST_REST * LOOK
    assert naps(waiter, end, SHORT) == [0]
    assert rests_in_looks(waiter, end, 3) == pytest.approx([1, 3], abs=0.2)


def test_it_does_not_look_where_all_rings(make: Make) -> None:
    end = make(Rung)
    with Waiter([end]) as waiter:
        assert naps(waiter, end, SHORT, SHORT) == [1, 1]


def test_it_does_not_look_where_a_thread_brings_what_comes_to_one_of_several(make: Make) -> None:
    end = make(End)
    with Waiter([make(Brought), end]) as waiter:
        assert naps(waiter, end, SHORT, SHORT) == [1, 1]


def test_where_all_rings_it_is_asked_once_before_and_once_when_it_has_rung(make: Make) -> None:
    """To ask a socket of ZeroMQ takes two to three microseconds."""
    idle, end = make(Rung), make(Rung)
    with Waiter([idle, end]) as waiter:
        idle.asked = end.asked = 0
        end.due = end.clock.now + SHORT
        assert waiter.wait(10.0)
    assert idle.asked <= 1
    assert end.asked <= 2


def test_to_look_is_to_ask_what_always_rings_too(make: Make) -> None:
    """What rang once, while the worker was busy with that very end, may be in nobody's books yet."""
    end = make(Rung)
    with Waiter([end]) as waiter:
        assert not waiter.look()
        end.due = end.clock.now
        assert waiter.look()
        assert not waiter.look()


def test_it_looks_where_one_of_several_does_not_always_ring(make: Make) -> None:
    end = make(End)
    with Waiter([make(Rung), end]) as waiter:
        assert naps(waiter, end, SHORT) == [0]


def test_looking_can_be_left_out(make: Make) -> None:
    end = make(End)
    with Waiter([end], look=0.0) as waiter:
        assert naps(waiter, end, SHORT, SHORT) == [1, 1]


def test_who_spins_never_rests(make: Make) -> None:
    end = make(End)
    with Waiter([end], spin=2 * LONG) as waiter:
        assert naps(waiter, end, LONG, SHORT, LONG) == [0, 0, 0]


def test_shared_memory_is_looked_at(clock: Clock, kept: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    bells = make_sockets()
    sender, receiver = SharedSender("0>1", "b", 2, bells[0]), SharedReceiver("0>1", "a", 2, bells[1])
    kept.callback(receiver.close)
    kept.callback(sender.close)
    sender.send(Gradient(edge="0>1", step=0, tensors=(torch.ones(1),), kind=GradientKind.TARGET), timeout=1)
    receiver.receive(timeout=1)
    dozed: list[bool] = []
    monkeypatch.setattr(receiver, "doze", dozed.append)
    with Waiter([receiver]) as waiter:
        due = clock.now + SHORT

        def send_when_due() -> None:
            if clock.now >= due and sender.statistics().messages == 1:
                sender.try_send(Gradient(edge="0>1", step=1, tensors=(torch.ones(1),), kind=GradientKind.TARGET))

        clock.on_tick = send_when_due
        assert waiter.wait(10.0)
    assert not dozed


def test_who_has_looked_dozes_for_the_rest_of_its_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    listened: list[float] = []
    monkeypatch.setattr(select, "epoll", lambda: Poll(listened))
    assert not Waiter([make(End)]).wait(LONG)
    assert listened == [pytest.approx(LONG - LOOK)]


def test_who_looks_does_not_look_for_longer_than_it_waits(make: Make) -> None:
    end = make(End)
    with Waiter([end], spin=1.0) as waiter:
        begun = end.clock.now
        assert not waiter.wait(SHORT)
        assert end.clock.now - begun < SHORT + 5 * TICK


def test_what_came_just_before_it_dozed_is_not_slept_through(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    listened: list[float] = []
    monkeypatch.setattr(select, "epoll", lambda: Poll(listened))
    assert Waiter([make(Hasty)], look=0.0).wait(10.0)
    assert listened == [0.0]
