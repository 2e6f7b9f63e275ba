"""The memory of a ring by itself: what nobody can do to it, and what an interrupt does not do."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from stepahead.workers import ring
from stepahead.workers.ring import SEALS, SENT, Memory


class InterruptedLock:
    """A lock whose release is followed by Ctrl-C."""

    coming = False

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.acquire = self.lock.acquire

    def release(self) -> None:
        self.lock.release()
        if self.coming:
            raise KeyboardInterrupt


def test_the_memory_can_neither_shrink_nor_grow_nor_be_found() -> None:
    memory = Memory.create(2, 100, "0>1")
    assert fcntl.fcntl(memory.descriptor, fcntl.F_GET_SEALS) & SEALS == SEALS
    with pytest.raises(PermissionError):
        os.ftruncate(memory.descriptor, 10)
    status = os.fstat(memory.descriptor)
    assert status.st_nlink == 0
    assert status.st_blocks * 512 >= status.st_size  # allocated to the last byte: writing cannot fail any more
    memory.close()


def test_an_interrupt_inside_of_a_fence_spoils_none_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "Lock", InterruptedLock)
    memory = Memory.create(2, 100, "0>1")
    monkeypatch.setattr(InterruptedLock, "coming", True)
    with pytest.raises(KeyboardInterrupt):
        memory.set(SENT, 1)
    monkeypatch.setattr(InterruptedLock, "coming", False)
    memory.set(SENT, 2)
    assert memory.get(SENT) == 2
    memory.close()
