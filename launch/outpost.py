"""The outpost: on each further host, it stands between the workers there and the supervisor, which is on the first.

    workers  -- control.sock -->  outpost  ==== uplink ====  supervisor
                 said       what a worker says: as if it were at the supervisor's
                 telemetry  what its telemetry holds, with times of the first host's clock
                 file       what it left in its folder, piece by piece, before its last word
                 ended      its process is no more
                 state      it was stopped, or goes on
                 tell       what the supervisor says to a worker

It works in a folder of its own, which is gone when it ends: a run's folder is on the first host.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepahead.workers import Telemetry, Wiring

from .switchboard import Switchboard
from .uplink import Uplink, Word
from .watched import Watched

__all__ = ["Outpost"]

LOOK_EVERY = 0.25
PIECE = 2**20
"""Bytes of a file that go at a time: on a slow way, signs of life go in between."""
PIECES_AHEAD = 4
"""That may be on their way: a file can be larger than the memory."""
LAST_WORDS = ("finished", "failed")


class Outpost:
    """Serves the workers of one host.

    Args:
        folder: Where they work.
        listener: The socket in it that they connect to.
        names: Of the workers.
        wiring: Of the run's links.
        uplink: To the supervisor.
    """

    def __init__(self, folder: Path, listener: socket.socket, names: list[str], wiring: Wiring, uplink: Uplink) -> None:
        self.folder = folder
        self._selector = selectors.DefaultSelector()
        self._switchboard = Switchboard(listener, wiring, self._selector)
        self._uplink = uplink
        self._selector.register(uplink, selectors.EVENT_READ)
        self._missing = set(names)
        """Who has not come yet, or has more to say."""
        self._workers: dict[int, Watched] = {}
        """By a descriptor of their process."""
        self._telemetry: dict[str, tuple[Telemetry, int]] = {}
        """And how many of its spans were sent."""
        self._waiting: deque[Iterator[Word]] = deque()
        """What is to be sent, in order."""
        self._pieces = PIECES_AHEAD
        self._sent: set[Path] = set()
        self._clock = _Clock(uplink)
        self._looked = 0.0

    def run(self) -> None:
        """Serve until no worker is left, or nobody is at the other end of the line."""
        while (self._missing or self._waiting or self._pieces < PIECES_AHEAD) and not self._uplink.gone:
            events = self._selector.select(LOOK_EVERY)
            dead = [key.fd for key, _ in events if key.fd in self._workers]
            for name, message, descriptors in self._switchboard.messages():
                self._take(name, message, descriptors)
            for word, _ in self._uplink.take():
                self._obey(word)
            self._send_on()
            for descriptor in dead:
                self._bury(descriptor)
            if not self._waiting and time.monotonic() - self._looked >= LOOK_EVERY:
                self._looked = time.monotonic()
                self._clock.ask()
                self._look_for_stopped()
                self._waiting.append(self._figures(*self._telemetry))

    def close(self) -> None:
        """Let go of everything."""
        self._selector.unregister(self._uplink)
        self._switchboard.close()
        self._uplink.close()
        for telemetry, _ in self._telemetry.values():
            telemetry.close()
        for descriptor in self._workers:
            os.close(descriptor)
        self._selector.close()

    def _take(self, name: str, message: dict[str, Any], descriptors: list[int]) -> None:
        """Pass on what a worker says."""
        if message["kind"] == "hello":
            self._telemetry[name] = Telemetry(descriptor=descriptors[0]), 0
            self._watch(name, message["pid"])
            message["events"] = self._telemetry[name][0].events
        elif message["kind"] in LAST_WORDS:
            self._waiting += self._figures(name), self._files(name)
        self._say("said", name=name, message=message)
        if message["kind"] in LAST_WORDS:
            self._leave(name)  # its process may live on: the first rank's waits for this one

    def _watch(self, name: str, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:  # it said hello and died
            self._end(name)
            return
        self._workers[descriptor] = Watched(name, pid, descriptor, ours=False)
        self._selector.register(descriptor, selectors.EVENT_READ)

    def _bury(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)
        self._end(self._workers.pop(descriptor).name)

    def _look_for_stopped(self) -> None:
        """Tell a stopped worker from a busy one."""
        for worker in self._workers.values():
            if worker.turned():
                self._say("state", name=worker.name, pid=worker.pid, stopped=worker.stopped)

    def _end(self, name: str) -> None:
        self._waiting += self._figures(name), self._files(name)
        self._say("ended", name=name)
        self._leave(name)

    def _leave(self, name: str) -> None:
        """Take note that a worker has no more to say; the last word of all is one that is answered."""
        if name in self._missing:
            self._missing.remove(name)
            if not self._missing:
                self._say("bye")

    def _obey(self, word: dict[str, Any]) -> None:
        if word["kind"] == "tell":
            self._switchboard.tell(word["word"], word["to"], **word["fields"])
        elif word["kind"] == "took":
            self._pieces += 1
        elif word["kind"] == "pong":
            self._clock.hear(word)

    def _figures(self, *names: str) -> Iterator[Word]:
        """Yield what workers have written into their telemetry since."""
        for name in filter(self._telemetry.__contains__, names):
            telemetry, sent = self._telemetry[name]
            figures, events, written = telemetry.copy(sent, self._clock.ahead)
            self._telemetry[name] = telemetry, written
            yield {"kind": "telemetry", "name": name}, [figures, events]

    def _say(self, kind: str, **fields: Any) -> None:
        self._waiting.append(iter([({"kind": kind, **fields}, list[bytes]())]))

    def _files(self, name: str) -> Iterator[Word]:
        """Yield what a worker has left since, in pieces."""
        places = (self.folder / "logs" / name).rglob("*"), (self.folder / "snapshots").rglob(f"stage-{name}.*")
        for path in (path for place in places for path in sorted(place) if path.is_file() and path not in self._sent):
            self._sent.add(path)
            with path.open("rb") as file:
                while (piece := file.read(PIECE)) or not file.tell():
                    yield {"kind": "file", "path": str(path.relative_to(self.folder))}, [piece]
                    if not piece:
                        break

    def _send_on(self) -> None:
        """Send what waits, as far as pieces of files may be on their way."""
        while self._waiting and self._pieces:
            found = next(self._waiting[0], None)
            if found is None:
                self._waiting.popleft()
                continue
            fields, beside = found
            self._pieces -= fields["kind"] in ("file", "bye")
            self._uplink.send(fields, beside)


class _Clock:
    """How far the first host's clock is ahead of this one's: asked again and again, and the quickest answer counts."""

    def __init__(self, uplink: Uplink) -> None:
        self.ahead = 0
        """In nanoseconds."""
        self._uplink = uplink
        self._quickest = 1 << 62

    def ask(self) -> None:
        self._uplink.send({"kind": "ping", "asked": time.perf_counter_ns()})

    def hear(self, word: dict[str, Any]) -> None:
        now = time.perf_counter_ns()
        took = now - word["asked"]
        if took < self._quickest:
            self._quickest = took
            self.ahead = word["time"] - (word["asked"] + now) // 2
