"""Waiting for several things at once: link ends, and the connection to the supervisor.

Some of what can happen rings at a descriptor. The rest is only seen by looking, at a number in shared memory for
example, until one says that one dozes: from then on it rings too. So nobody rings for whoever is awake.

To ring and to be woken takes several times as long as all else that a small message needs. So whoever waits looks for a
while before it dozes. After a look in vain it does not look again for some time, longer after each: the other side may
need this core. Where a thread of ZeroMQ's or gloo's brings messages it never looks, for that thread needs the core.
"""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Waitable", "Waiter"]

LOOK = 0.0002
"""Seconds: about twice what it takes to be woken on a machine with neighbours."""
MOST_REST = 100
"""The longest rest from looking, in looks: so looks in vain soon take a hundredth of the time."""


class Waitable(ABC):
    """One thing to wait for, with somebody at its other side."""

    rings = True
    """Whether whatever comes while one sleeps rings, without `doze`."""
    brought = False
    """Whether a thread of this process brings what comes: it needs the core, and may need Python's lock."""

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that becomes readable when something happened."""

    @abstractmethod
    def refresh(self) -> None:
        """Take note of what happened; call it when the descriptor is readable."""

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether the other side is no more, and all that it did before has been noted."""

    def news(self) -> int:
        """Return a number that changes with what happens, whether it rang or not."""
        return 0

    def doze(self, dozing: bool) -> None:  # noqa: B027  most things always ring
        """Say whether all that happens must ring."""


class Waiter:
    """Waits until something happened at the other side of any of several.

    Args:
        ends: What to wait for.
        spin: Seconds for which it looks before it dozes, each time; that keeps a core busy.
        look: Seconds for which it looks first, if that is of use and hinders nobody; it rests from looks in vain.
    """

    def __init__(self, ends: Iterable[Waitable], spin: float = 0.0, look: float = LOOK) -> None:
        self._ends = list(ends)
        self._spin = spin
        self._silent = [end for end in self._ends if not end.rings]  # until one dozes
        self._look = look if self._silent and not any(end.brought for end in self._ends) else 0.0
        self._rest = self._rests_until = 0.0
        self._by_descriptor = {end.fileno(): end for end in self._ends}
        self._known = {end: end.news() for end in self._ends}
        self._poll = select.epoll()
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.EPOLLIN)

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def look(self) -> bool:
        """Let the ends take note of what happened, and return whether anything had."""
        rung = self._hear(0.0)
        return self._catch_up(self._ends) or rung

    def wait(self, timeout: float) -> bool:
        """Wait for at most `timeout` seconds, let the ends take note, and return whether anything happened."""
        if self._catch_up(self._ends):
            self._hear(0.0)
            return True
        begun = time.monotonic()
        may_look = begun >= self._rests_until
        looking = min(max(self._spin, self._look if may_look else 0.0), timeout)
        if self._look_until(begun + looking):
            self._rest = 0.0  # whoever sent it did not need this core
            return True
        if may_look and looking < timeout:
            self._rest = min(2 * self._rest + self._look, MOST_REST * self._look)
            self._rests_until = begun + looking + self._rest
        return self._doze(timeout - looking)

    def rounds(self, timeout: float) -> Iterator[None]:
        """Yield at once, and again whenever something happened, until `timeout` seconds are over."""
        deadline = time.monotonic() + timeout
        self.look()
        yield
        while (left := deadline - time.monotonic()) > 0:
            self.wait(left)
            yield

    def close(self) -> None:
        self._poll.close()

    def _doze(self, timeout: float) -> bool:
        try:
            for end in self._ends:
                end.doze(True)
            news = self._catch_up(self._silent)  # what happened before we dozed has not rung
            return self._hear(0.0 if news else timeout) or news
        finally:
            for end in self._ends:
                end.doze(False)

    def _look_until(self, deadline: float) -> bool:
        """Look at the numbers until then, and return whether one has changed; the next wait hears what only rings."""
        while time.monotonic() < deadline:
            if self._catch_up(self._ends):
                return True
        return False

    def _catch_up(self, ends: Sequence[Waitable]) -> bool:
        """Remember these ends' numbers, and return whether any has changed."""
        before = [self._known[end] for end in ends]
        now = [end.news() for end in ends]
        if now == before:
            return False
        self._known.update(zip(ends, now, strict=True))
        return True

    def _hear(self, timeout: float) -> bool:
        rung = {descriptor: self._by_descriptor[descriptor] for descriptor, _ in self._poll.poll(timeout)}
        for descriptor, end in rung.items():
            end.refresh()
            if end.gone:
                self._poll.unregister(descriptor)  # it would report that for ever
        if rung:
            self._catch_up([*rung.values(), *self._silent])  # no news any more: the caller looks at all the ends now
        return bool(rung)
