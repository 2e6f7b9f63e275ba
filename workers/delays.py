"""Links that are as slow as one says: a message may be received once it would have come over such a way.

Applied at the receiver. For our links a thread takes in what comes and holds it back; for torch's schedules the sender
leaves in a file when what it sends would be there, and the receiver sleeps until then.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from stepahead.pipeline import Message

from .channels import Receiver
from .waiting import Waiter
from .wire import header_of

__all__ = ["Delay", "DelayedReceiver", "DueTimes"]

PATIENCE, SHORT = 0.05, 0.001
"""Seconds after which the thread looks whether its link was closed, and whether there is room again."""
NUMBER = 8


@dataclass(frozen=True, slots=True)
class Delay:
    """A way between two stages."""

    latency: float = 0.0
    """Seconds."""
    gbps: float | None = None
    """Gigabits a second; as many as one likes if None."""

    def __bool__(self) -> bool:
        return self.latency > 0 or self.gbps is not None

    def lasts(self, size: int) -> float:
        """Return the seconds for which so many bytes keep the way busy."""
        return 0.0 if self.gbps is None else size * 8 / (self.gbps * 1e9)


class DelayedReceiver(Receiver):
    """The receiving end of a link, behind a slow way.

    Args:
        inner: The link's own end.
        delay: The way.
    """

    brought = True

    def __init__(self, inner: Receiver, delay: Delay) -> None:
        super().__init__(inner.edge, inner.peer, inner.capacity)
        self._inner, self._delay = inner, delay
        self._coming: deque[tuple[float, Message]] = deque()
        self._ready: deque[Message] = deque()
        self._error: Exception | None = None
        self._free = 0.0
        """When the way is free again."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = Lock()
        """Held while the bell is rung or closed: a closed descriptor's number may soon be another one's."""
        self._thread = Thread(target=self._hold, daemon=True, name="slow way")
        self._thread.start()

    def fileno(self) -> int:
        return self._bell

    def refresh(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    @property
    def gone(self) -> bool:
        return self._error is not None and not self._ready

    @property
    def waiting(self) -> int:
        return len(self._ready)

    def news(self) -> int:
        return self._messages + len(self._ready) + (self._error is not None)

    def try_receive(self, *, own: bool = True) -> Message | None:
        self._check_open("receive")
        over = self._error  # before what came is looked at: then all of it is there
        if not self._ready:
            if over is not None:
                raise over
            return None
        message = self._ready.popleft()
        self._count(header_of(message, self._messages), message)
        return message

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._thread.join()
        self._inner.close()
        with self._lock:
            os.close(self._bell)

    def _hold(self) -> None:
        """Take in what comes, and let it through when it is due."""
        try:
            with Waiter([self._inner], look=0.0) as waiter:  # looking keeps Python's lock from who computes
                while not self.closed:
                    self._take_in()
                    self._let_through()
                    left = self._coming[0][0] - time.monotonic() if self._coming else PATIENCE
                    patience = SHORT if self._is_full else PATIENCE  # nobody rings when there is room again
                    waiter.wait(min(max(left, 0.0), patience))
        except Exception as error:  # whoever receives is to hear of it, whatever it is
            while self._coming and not self.closed:
                time.sleep(min(max(self._coming[0][0] - time.monotonic(), 0.0), PATIENCE))
                self._let_through()
            self._error = error
            self._ring()

    @property
    def _is_full(self) -> bool:
        """Whether as many are on their way as the link holds."""
        return len(self._coming) + len(self._ready) >= self.capacity

    def _take_in(self) -> None:
        while not self._is_full:
            message = self._inner.try_receive()
            if message is None:
                return
            size = sum(value.nbytes for value in message.values)
            self._free = max(self._free, time.monotonic()) + self._delay.lasts(size)
            self._coming.append((self._free + self._delay.latency, message))

    def _let_through(self) -> None:
        while self._coming and self._coming[0][0] <= time.monotonic():
            self._ready.append(self._coming.popleft()[1])
            self._ring()

    def _ring(self) -> None:
        with self._lock:
            if not self.closed:
                os.eventfd_write(self._bell, 1)


class DueTimes:
    """When what the stages of a torch schedule send each other would be there: numbers in a file that all have.

    Args:
        file: The same for all.
        delay: The ways between them.
        owner: Returns the stage that has a group: within one there is no way.
        groups, microbatches: How many there are.
    """

    def __init__(
        self, file: Path, delay: Delay, owner: Callable[[int], int | None], groups: int, microbatches: int
    ) -> None:
        self._delay, self._owner = delay, owner
        self._groups, self._microbatches = groups, microbatches
        size = 3 * groups * microbatches * NUMBER
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(descriptor, 0, size)
        self._numbers: memoryview[int] = memoryview(mmap.mmap(descriptor, size)).cast("q")
        os.close(descriptor)
        self._free = [0, 0]
        """When the way down and the way up are free again."""

    def watch(self, stage: Any) -> None:
        """Let one of torch's stages wait for what would not be there yet."""
        group = stage.stage_index
        forward, backward = stage.forward_one_chunk, stage.backward_one_chunk

        def delayed_forward(microbatch: int, *arguments: Any, **options: Any) -> Any:
            self._wait(0, group - 1, group, microbatch)
            output = forward(microbatch, *arguments, **options)
            size = output.nbytes if hasattr(output, "nbytes") else sum(part.nbytes for part in output)
            self._numbers[self._place(2, group, microbatch)] = size
            self.note(0, group, microbatch, size)
            return output

        def delayed_backward(microbatch: int, *arguments: Any, **options: Any) -> Any:
            self._wait(1, group + 1, group, microbatch)
            result = backward(microbatch, *arguments, **options)
            if group > 0:
                self.note(1, group, microbatch, self._numbers[self._place(2, group - 1, microbatch)])
            return result

        stage.forward_one_chunk, stage.backward_one_chunk = delayed_forward, delayed_backward

    def due(self, plane: int, group: int, microbatch: int) -> int:
        """Return when what a group sent last would be there, in nanoseconds; 0 for what goes nowhere."""
        return self._numbers[self._place(plane, group, microbatch)]

    def _place(self, plane: int, group: int, microbatch: int) -> int:
        return (plane * self._groups + group) * self._microbatches + microbatch

    def note(self, plane: int, group: int, microbatch: int, size: int) -> None:
        """Leave when what this group sends would be there: down (0) or up (1)."""
        receiver = group + 1 if plane == 0 else group - 1
        if self._owner(receiver) in (None, self._owner(group)):
            return
        free = self._free[plane] = max(self._free[plane], time.monotonic_ns()) + round(self._delay.lasts(size) * 1e9)
        self._numbers[self._place(plane, group, microbatch)] = free + round(self._delay.latency * 1e9)

    def _wait(self, plane: int, sender: int, receiver: int, microbatch: int) -> None:
        if self._owner(sender) in (None, self._owner(receiver)):
            return
        left = self.due(plane, sender, microbatch) - time.monotonic_ns()
        if left > 0:
            time.sleep(left / 1e9)
