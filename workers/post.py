"""A worker at its post: where it runs, its ends of the links, how it waits for them, what it tells the supervisor."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stepahead.pipeline import LinkTimeoutError, PeerEndedError, PeerGoneError
from stepahead.pipeline.devices import make_current, queue_clock

from .channels import LinkEnd, Receiver, Sender
from .control import Control
from .ends import stage_title
from .joining import Joining
from .ledger import Ledger
from .loop import Progress
from .place import Place, log_folder
from .queued import QueuedSpans
from .spans import Spans, Wait
from .telemetry import EVENTS_KEPT, Telemetry
from .waiting import Waiter

__all__ = ["Post"]

REPORT_EVERY = 0.25
LONGEST_WAIT = 0.5
"""Seconds after which a rank of torchrun that waits looks up: a signal to it does not end a wait."""


class Post:
    """A worker at its place, connected: it gets its links, waits for them, and reports.

    Args:
        place: Where this is.
        control: The connection to the supervisor.
    """

    def __init__(self, place: Place, control: Control) -> None:
        self.place = place
        self.control = control
        make_current(place.device)
        self.joining = Joining(place, self.tell, self._hear)
        self.telemetry = Telemetry(EVENTS_KEPT if place.telemetry else 0, shared=True)
        self.spans = self._make_spans()
        self.progress = Progress()
        self.stopping = False
        """The launcher wants the run to end in order: no batch more."""
        self.abandoned = False
        """The launcher wants it to end now, with what there is."""
        self.interrupted = False
        self._ran_before = running()
        self._ends: dict[str, Sender | Receiver] = {}
        self._resumed = False
        self._reported = 0.0
        if place.torchrun:
            signal.signal(signal.SIGINT, self._note_interruption)
            signal.signal(signal.SIGTERM, self._note_interruption)
        assert self.telemetry.descriptor is not None
        self.tell("hello", [self.telemetry.descriptor], name=place.name, pid=os.getpid())

    def begin(self) -> None:
        """Count from here where the time goes."""
        self.spans.begin()
        self._ran_before = running()

    @property
    def contention(self) -> float | None:
        """Of the time in which this could have run since, the share in which it did: below 1 others had its core."""
        ran, waited = (now - before for now, before in zip(running(), self._ran_before, strict=True))
        return ran / (ran + waited) if ran + waited else None

    def tell(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Tell the supervisor something that it must know; it may be slow, or stand before a full terminal."""
        if not self.control.send(kind, descriptors, timeout=self.place.timeout, **fields) and not self.control.gone:
            raise LinkTimeoutError(f"the supervisor did not listen for {self.place.timeout:g} s to {kind!r}")

    def resume(self, *_: object) -> None:
        """Take note that this process may have been stopped until now, as the handler of SIGCONT."""
        self.spans.resume()
        self._resumed = True

    def ends(self) -> dict[str, Sender | Receiver]:
        """Return the worker's ends of its links by their role."""
        made = self._ends = self.joining.ends()
        if self.place.ledger:
            ledger = Ledger(log_folder(self.place.run, self.place.name))
            for end in made.values():
                end.on_message = ledger.recorder("sent" if isinstance(end, Sender) else "received")
        return made

    def part(self) -> None:
        """Close the ends in order, once what was sent has been taken: it would be lost with this process."""
        senders = [end for end in self._ends.values() if isinstance(end, Sender)]
        for end in self._ends.values():
            if isinstance(end, Receiver):
                end.close()  # first, so that nobody waits for somebody who waits
        deadline = time.monotonic() + self.place.timeout
        with Waiter([*senders, self.control]) as waiter:
            while not self.abandoned and not all(end.settled for end in senders):
                if (left := deadline - time.monotonic()) <= 0:
                    late = ", ".join(f"{end.peer} on edge {end.edge}" for end in senders if not end.settled)
                    raise LinkTimeoutError(
                        f"{stage_title(self.place.name)} is done, but what it sent was not taken for "
                        f"{self.place.timeout:g} s by {late}; --timeout raises the limit"
                    )
                waiter.wait(min(left, LONGEST_WAIT))
                self._listen()
        self.leave()

    def leave(self) -> None:
        """Close the ends: a process that failed may live on, and its peers are not to wait for it."""
        for end in self._ends.values():
            end.close()

    def drive(self, actions: Iterator[Wait | None], ends: list[LinkEnd], report: Callable[[], None]) -> None:
        """Run a loop to its end: wait when it has nothing to do, and report from time to time."""
        with Waiter([*ends, self.control], self.place.spin) as waiter:
            try:
                self._drive(actions, waiter, ends, report)
            except (PeerGoneError, PeerEndedError):
                self.control.refresh()
                self._listen()
                if not self.abandoned:  # then all workers leave where they are
                    raise

    def _make_spans(self) -> Spans:
        clock = queue_clock(self.place.device) if self.place.telemetry else None
        return Spans(self.telemetry) if clock is None else QueuedSpans(self.telemetry, clock)

    def _drive(
        self, actions: Iterator[Wait | None], waiter: Waiter, ends: list[LinkEnd], report: Callable[[], None]
    ) -> None:
        since, waiting = time.monotonic(), False
        for wait in actions:
            now = time.monotonic()
            if not waiting or self._resumed:
                since, self._resumed = now, False
            waiting = wait is not None
            if wait is not None:
                self._wait(waiter, wait, ends, since + self.place.timeout - now)
                self._listen()
            if now - self._reported >= REPORT_EVERY:
                self._reported = now
                waiter.look()  # one that never waits would never hear its supervisor
                self._listen()
                report()
            if self.abandoned:
                return

    def _wait(self, waiter: Waiter, wait: Wait, ends: list[LinkEnd], left: float) -> None:
        if left > 0:
            with self.spans(wait):
                waiter.wait(min(left, LONGEST_WAIT) if self.place.torchrun else left)
        else:
            raise LinkTimeoutError(
                f"{stage_title(self.place.name)} did nothing for {self.place.timeout:g} s at step "
                f"{self.progress.steps} ({wait}): {_whom(wait, ends)}; --timeout raises the limit"
            )

    def _hear(self, kind: str) -> tuple[Mapping[str, Any], Sequence[int]]:
        """Wait for a word of that kind, and take note of others."""
        while True:
            message, descriptors = self.control.receive(self.place.timeout)
            if message["kind"] == kind:
                return message, descriptors
            self._note(message)

    def _listen(self) -> None:
        for message, _ in self.control.take():
            self._note(message)
        if self.interrupted:
            self.interrupted = False
            self.control.report("interrupted")

    def _note(self, message: Mapping[str, Any]) -> None:
        self.stopping = self.stopping or message["kind"] == "stop"
        self.abandoned = self.abandoned or message["kind"] == "abandon"

    def _note_interruption(self, *_: object) -> None:
        """Under torchrun a signal comes to the workers; the supervisor hears of it from them."""
        self.interrupted = True


def running() -> tuple[int, int]:
    """Return the nanoseconds for which this thread has run, and for which it waited for a core though it could have."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            ran, waited, _ = map(int, file.read().split())
    except (OSError, ValueError):  # a kernel that does not say
        return 0, 0
    return ran, waited


def _whom(wait: Wait, ends: list[LinkEnd]) -> str:
    """Say who keeps the worker waiting."""
    if wait == "wait_credit":
        full = [end for end in ends if isinstance(end, Sender) and end.full]
        return ", ".join(f"{end.peer} took nothing more on edge {end.edge}" for end in full) or "a link was full"
    gradients = wait == "wait_gradient"
    silent = [end for end in ends if isinstance(end, Receiver)]
    return f"{silent[-1 if gradients else 0].peer} sent no {'gradient' if gradients else 'batch'}"
