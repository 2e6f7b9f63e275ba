"""A worker at its post: where it runs, its ends of the links, how it waits for them, what it tells the supervisor."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepahead.pipeline import LinkTimeoutError, PeerEndedError, PeerGoneError, edge_name

from .channels import LinkEnd, Sender, Waiter
from .control import Control
from .ledger import Ledger
from .loop import Links
from .sharedmem import SharedReceiver, SharedSender
from .spans import Spans, Wait

__all__ = ["DATA", "Place", "Post", "log_folder", "stage_title"]

DATA = "data"
REPORT_EVERY = 0.2
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
    own_logs: bool
    """Whether what is printed goes to the log folder; torchrun has its own."""

    @property
    def stage(self) -> int:
        """The stage's number; -1 for the data."""
        return -1 if self.name == DATA else int(self.name)


def stage_title(name: str) -> str:
    """Return what to call a worker in a message to people."""
    return "the data process" if name == DATA else f"stage {name}"


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
        self.spans = Spans()
        self.steps = 0
        self.stopping = False
        """The launcher wants the run to end in order: no batch more."""
        self.abandoned = False
        """The launcher wants it to end now, with what there is."""
        self.interrupted = False
        self._reported = 0.0
        if not place.own_logs:
            signal.signal(signal.SIGINT, self._note_interruption)
            signal.signal(signal.SIGTERM, self._note_interruption)
        self.tell("hello", name=place.name, pid=os.getpid())

    def tell(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Tell the supervisor something that it must know; it may be slow, or stand before a full terminal."""
        if not self.control.send(kind, descriptors, timeout=self.place.timeout, **fields) and not self.control.gone:
            raise LinkTimeoutError(f"the supervisor did not listen for {self.place.timeout:g} s to {kind!r}")

    def links(self) -> Links:
        """Return the stage's ends of its links."""
        place, ends = self.place, self._take_ends()
        above, below = place.stage - 1, place.stage + 1
        activations_in = SharedReceiver(
            edge_name(above, place.stage),
            stage_title(DATA if above < 0 else str(above)),
            place.window if above >= 0 else place.prefetch,
            ends["activations_in"],
        )
        last, first = place.stage == place.stages - 1, place.stage == 0
        links = Links(
            activations_in=activations_in,
            activations_out=None if last else self._sender("activations_out", place.stage, below, str(below), ends),
            gradients_in=None
            if last
            else SharedReceiver(
                edge_name(place.stage, below), stage_title(str(below)), place.window, ends["gradients_in"]
            ),
            gradients_out=None if first else self._sender("gradients_out", above, place.stage, str(above), ends),
        )
        self._keep_ledger(links.ends)
        return links

    def feed_link(self) -> SharedSender:
        """Return the data process's end of the link to the first stage."""
        link = self._sender("activations_out", -1, 0, "0", self._take_ends(), capacity=self.place.prefetch)
        self._keep_ledger([link])
        return link

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
        since, looked, waiting = time.monotonic(), self.steps, False
        for wait in actions:
            now = time.monotonic()
            if not waiting:
                since = now
            waiting = wait is not None
            if wait is None:
                if self.steps != looked:  # a look at the links is dear; once a step is enough
                    waiter.wait(0)
                    looked = self.steps
            else:
                self._wait(waiter, wait, ends, since + self.place.timeout - now)
            self._listen()
            if self.abandoned:
                return
            if now - self._reported >= REPORT_EVERY:
                self._reported = now
                report()

    def _wait(self, waiter: Waiter, wait: Wait, ends: list[LinkEnd], left: float) -> None:
        if left > 0:
            with self.spans(wait):
                waiter.wait(left if self.place.own_logs else min(left, LONGEST_WAIT))
        else:
            raise LinkTimeoutError(
                f"{stage_title(self.place.name)} did nothing for {self.place.timeout:g} s at step {self.steps} "
                f"({wait}): {_whom(wait, ends)}; --timeout raises the limit"
            )

    def _listen(self) -> None:
        for message, _ in self.control.take() if self.control.heard else ():
            self.stopping = self.stopping or message["kind"] == "stop"
            self.abandoned = self.abandoned or message["kind"] == "abandon"
        if self.interrupted:
            self.interrupted = False
            self.control.report("interrupted")

    def _note_interruption(self, *_: object) -> None:
        """Under torchrun a signal comes to the workers; the supervisor hears of it from them."""
        self.interrupted = True

    def _take_ends(self) -> dict[str, socket.socket]:
        message, descriptors = self.control.wait_for("links", timeout=self.place.timeout)
        return dict(zip(message["ends"], (socket.socket(fileno=fd) for fd in descriptors), strict=True))

    def _keep_ledger(self, ends: Iterable[LinkEnd]) -> None:
        if self.place.ledger:
            ledger = Ledger(log_folder(self.place.run, self.place.name))
            for end in ends:
                end.on_message = ledger.recorder("sent" if isinstance(end, Sender) else "received")

    def _sender(
        self, role: str, above: int, below: int, peer: str, ends: dict[str, socket.socket], capacity: int = 0
    ) -> SharedSender:
        edge = edge_name(above, below)

        def keep(descriptor: int) -> None:
            way = "activations" if role == "activations_out" else "gradients"
            self.tell("memory", [descriptor], edge=edge, way=way)

        capacity = capacity or self.place.window
        return SharedSender(edge, stage_title(peer), capacity, ends[role], on_memory=keep)


def _whom(wait: Wait, ends: list[LinkEnd]) -> str:
    """Say who keeps the worker waiting."""
    if wait == "wait_credit":
        full = [end for end in ends if end.statistics().waiting >= end.capacity]
        return ", ".join(f"{end.peer} took nothing more on edge {end.edge}" for end in full) or "a link was full"
    gradients = wait == "wait_gradient"
    silent = [end for end in ends if isinstance(end, SharedReceiver)]
    index = -1 if gradients else 0
    return f"{silent[index].peer} sent no {'gradient' if gradients else 'batch'}"
