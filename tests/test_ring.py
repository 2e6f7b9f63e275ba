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

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.acquire = self.lock.acquire

    def on_release(self) -> None: ...

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


def test_numbers_are_written_between_two_fences_and_read_before_one(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory.create(2, 100, "0>1")
    seen: list[int] = []

    def fence(_: Memory) -> None:
        """Note what the number is, and let another process change it."""
        seen.append(memory.glimpse(SENT))
        os.pwrite(memory.descriptor, (seen[-1] + 1).to_bytes(8, "little"), SENT * 8)

    monkeypatch.setattr(Memory, "_fence", fence)
    memory.set(SENT, 5)
    assert seen == [0, 5]
    assert memory.get(SENT) == 6
    assert seen == [0, 5, 6]
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
