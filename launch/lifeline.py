"""The lifeline: a process that dies with its parent, however that ends. It imports nothing that takes time."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["die_with", "hold_children"]

PR_SET_PDEATHSIG = 1


def die_with(parent: int, how: int = signal.SIGKILL) -> None:
    """Let this process get a signal, or be killed, when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:  # it ended before we were bound to it
        os.kill(os.getpid(), signal.SIGKILL)


def hold_children() -> None:
    """Let all that this process forks from now on be killed when it ends: a loader's processes, for example."""
    parent = 0

    def note() -> None:  # a child that forks is a parent too
        nonlocal parent
        parent = os.getpid()

    os.register_at_fork(before=note, after_in_child=lambda: die_with(parent))
