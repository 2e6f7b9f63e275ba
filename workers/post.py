"""A worker at its post: where it runs, its ends of the links, how it waits for them, what it tells the supervisor."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepahead.pipeline import LinkTimeoutError, PeerEndedError, PeerGoneError

from .channels import LinkEnd
from .control import Control
from .ends import DATA, End, ends_of, stage_title
from .ledger import Ledger
from .loop import Progress
from .sharedmem import SharedReceiver, SharedSender
from .spans import Spans, Wait
from .telemetry import EVENTS_KEPT, Telemetry
from .waiting import Waiter

__all__ = ["Place", "Post", "log_folder"]

REPORT_EVERY = 0.25
LONGEST_WAIT = 0.5
"""Seconds after which a rank of torchrun that waits looks up: a signal to it does not end a wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker runs."""

    name: str
    """Its stage's number, or "data"."""
    run: Path
    """The run folder."""
    stages: int
    cores: tuple[int, ...]
    """The cores to stay on; none to stay where the system likes."""
    window: int
    """Messages that a link holds."""
    prefetch: int
    """Batches that the link from the data holds."""
    timeout: float
    """Seconds to wait for another worker before giving up."""
    ledger: bool
    """Whether to write down every message that is sent or received."""
    telemetry: bool
    """Whether to keep what was done when, and not only how much in all."""
    torchrun: bool
    """Whether torchrun started this: then it keeps what is printed, and signals come to the worker itself."""

    @property
    def stage(self) -> int:
        """The stage's number; -1 for the data."""
        return -1 if self.name == DATA else int(self.name)


def log_folder(run: Path, name: str) -> Path:
    return run / "logs" / name


class Post:
    """A worker at its place, connected: it gets its links, waits for them, and reports.

    Args:
        place: Where this is.
        control: The connection to the supervisor.
    """

    def __init__(self, place: Place, control: Control) -> None:
        self.place = place
        self.control = control
        self.telemetry = Telemetry(EVENTS_KEPT if place.telemetry else 0, shared=True)
        self.spans = Spans(self.telemetry)
        self.progress = Progress()
        self.stopping = False
        """The launcher wants the run to end in order: no batch more."""
        self.abandoned = False
        """The launcher wants it to end now, with what there is."""
        self.interrupted = False
        self._resumed = False
        self._reported = 0.0
        if place.torchrun:
            signal.signal(signal.SIGINT, self._note_interruption)
            signal.signal(signal.SIGTERM, self._note_interruption)
        assert self.telemetry.descriptor is not None
        self.tell("hello", [self.telemetry.descriptor], name=place.name, pid=os.getpid())

    def tell(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Tell the supervisor something that it must know; it may be slow, or stand before a full terminal."""
        if not self.control.send(kind, descriptors, timeout=self.place.timeout, **fields) and not self.control.gone:
            raise LinkTimeoutError(f"the supervisor did not listen for {self.place.timeout:g} s to {kind!r}")

    def resume(self, *_: object) -> None:
        """Take note that this process may have been stopped until now, as the handler of SIGCONT."""
        self.spans.resume()
        self._resumed = True

    def ends(self) -> dict[str, SharedSender | SharedReceiver]:
        """Return the worker's ends of its links by their role."""
        place = self.place
        message, descriptors = self.control.receive(place.timeout)
        bells = dict(zip(message["ends"], descriptors, strict=True))
        ledger = Ledger(log_folder(place.run, place.name)) if place.ledger else None
        made: dict[str, SharedSender | SharedReceiver] = {}
        for end in ends_of(place.name, place.stages):
            made[end.role] = self._make(end, socket.socket(fileno=bells[end.role]))
            if ledger is not None:
                made[end.role].on_message = ledger.recorder("sent" if end.sends else "received")
        return made

    def drive(self, actions: Iterator[Wait | None], ends: list[LinkEnd], report: Callable[[], None]) -> None:
        """Run a loop to its end: wait when it has nothing to do, and report from time to time."""
        with Waiter([*ends, self.control]) as waiter:
            try:
                self._drive(actions, waiter, ends, report)
            except (PeerGoneError, PeerEndedError):
                self.control.refresh()
                self._listen()
                if not self.abandoned:  # then all workers leave where they are
                    raise

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

    def _listen(self) -> None:
        for message, _ in self.control.take():
            self.stopping = self.stopping or message["kind"] == "stop"
            self.abandoned = self.abandoned or message["kind"] == "abandon"
        if self.interrupted:
            self.interrupted = False
            self.control.report("interrupted")

    def _note_interruption(self, *_: object) -> None:
        """Under torchrun a signal comes to the workers; the supervisor hears of it from them."""
        self.interrupted = True

    def _make(self, end: End, bell: socket.socket) -> SharedSender | SharedReceiver:
        capacity = self.place.prefetch if DATA in (self.place.name, end.peer) else self.place.window
        if not end.sends:
            return SharedReceiver(end.edge, stage_title(end.peer), capacity, bell)

        def keep(descriptor: int) -> None:
            self.tell("memory", [descriptor], edge=end.edge, flow=end.flow)

        return SharedSender(end.edge, stage_title(end.peer), capacity, bell, on_memory=keep)


def _whom(wait: Wait, ends: list[LinkEnd]) -> str:
    """Say who keeps the worker waiting."""
    if wait == "wait_credit":
        full = [end for end in ends if isinstance(end, SharedSender) and end.full]
        return ", ".join(f"{end.peer} took nothing more on edge {end.edge}" for end in full) or "a link was full"
    gradients = wait == "wait_gradient"
    silent = [end for end in ends if isinstance(end, SharedReceiver)]
    return f"{silent[-1 if gradients else 0].peer} sent no {'gradient' if gradients else 'batch'}"
