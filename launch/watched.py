"""A worker, as its supervisor sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepahead.workers import Telemetry

__all__ = ["Watched", "state_of"]

DEAD = "ZX?"
"""States of a process that is gone, or about to be."""
SURE = 2
"""Looks in a row that find it stopped, until it is taken to be."""


@dataclass(slots=True)
class Watched:
    """One worker, near or far."""

    name: str
    pid: int
    pidfd: int
    """-1 if there is none: on another host, or of one that was dead before it could be opened."""
    ours: bool
    """Whether it is our child, so that we hear its exit status."""
    is_far: bool = False
    """Whether it is on another host."""
    telemetry: Telemetry | None = None
    seen: int = 0
    """How many of its spans have been read."""
    summary: dict[str, Any] | None = None
    """Its entry in the run's summary, once it is finished."""
    failed: bool = False
    """Whether it said that it failed; its process may live on."""
    ended: bool = False
    status: int | None = None
    """Its exit code, or minus the signal that ended it."""
    seen_stopped: int = 0
    """How many looks in a row have found it stopped."""
    killed: bool = False
    """Whether it was us who ended it."""

    @property
    def life(self) -> str:
        """Whether it is running, stopped, finished, lost, or ended: it said that it failed, or another one was lost."""
        if self.summary is not None:
            return "finished"
        if self.failed:  # it was not lost, also where it is gone before we could end it: it said why it ends
            return "ended"
        if self.ended:
            return "ended" if self.killed else "lost"
        return "stopped" if self.stopped else "running"

    @property
    def stopped(self) -> bool:
        """Whether a signal stopped it; one look alone may come before it goes on after a Ctrl-Z of us all."""
        return self.seen_stopped >= SURE

    def turned(self) -> bool:
        """Look at the process; return whether it was stopped since, or let go on."""
        state, before = state_of(self.pid), self.stopped
        self.seen_stopped = self.seen_stopped + 1 if state == "T" and not self.ended else 0
        return self.stopped != before and state not in DEAD

    def hear(self, stopped: bool) -> None:
        """Take note of what was seen of it elsewhere."""
        self.seen_stopped = SURE if stopped else 0

    @property
    def steps(self) -> int:
        """How many it has made, as far as it has said."""
        return int(self.telemetry["steps"]) if self.telemetry else 0

    @property
    def samples(self) -> int:
        """How many it has seen, as far as it has said."""
        return int(self.telemetry["samples"]) if self.telemetry else 0


def state_of(pid: int) -> str:
    """Return the letter of a process's state: T is stopped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return "?"
