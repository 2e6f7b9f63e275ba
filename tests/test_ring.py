"""The memory of a ring by itself: what nobody can do to it, and what an interrupt does not do."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from stepahead.workers import ring
from stepahead.workers.ring import SEALS, SENT, Memory


class WatchedLock:
    """A lock after whose release something happens: Ctrl-C for example."""

    def on_release(self) -> None: ...

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.acquire = self.lock.acquire

    def release(self) -> None:
        self.lock.release()
        self.on_release()


def interrupt(_: WatchedLock) -> None:
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
    monkeypatch.setattr(ring, "Lock", WatchedLock)
    memory = Memory.create(2, 100, "0>1")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(WatchedLock, "on_release", interrupt)
        with pytest.raises(KeyboardInterrupt):
            memory.set(SENT, 1)
    memory.set(SENT, 2)
    assert memory.get(SENT) == 2
    memory.close()


def test_a_fence_lets_go_of_its_lock_and_takes_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = WatchedLock()
    monkeypatch.setattr(ring, "Lock", lambda: lock)
    memory = Memory.create(2, 100, "0>1")
    held: list[bool] = []
    monkeypatch.setattr(WatchedLock, "on_release", lambda _: held.append(lock.lock.locked()))
    memory.get(SENT)
    assert held == [False]
    assert lock.lock.locked()
    memory.close()
