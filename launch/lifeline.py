"""The lifeline: a process that dies with its parent, however that ends. It imports nothing that takes time."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["die_with", "live_on"]

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Let this process, and all that it forks, be killed when its parent ends."""

    _bind(signal.SIGKILL)
    os.register_at_fork(after_in_child=lambda: _bind(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before we were bound to it
        os.kill(os.getpid(), signal.SIGKILL)


def live_on() -> None:
    """Let this process see its parent's end."""
    _bind(0)


def _bind(number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
