"""Links: the one-way queue of messages between two workers, seen from its two ends.

A link holds a fixed number of messages; a sender has a credit for each that may still be sent. `try_send` and
`try_receive` never wait, so a worker can look after all its ends in turn and wait on all of them at once, with
`Waiter`: it can then never stand before a full link while another one overflows.

Every implementation numbers its messages and is held to the same contract by `tests/test_channels.py`.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

from stepahead.pipeline import (
    FrameError,
    LinkClosedError,
    LinkTimeoutError,
    Message,
    MessageError,
    PeerEndedError,
    PeerGoneError,
)

from .waiting import Waitable, Waiter
from .wire import Header, header_of, load

__all__ = ["LinkEnd", "LinkStatistics", "Receiver", "Sender", "memory_link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatistics:
    """What went through one end of a link so far."""

    messages: int
    """Sent or received."""
    bytes: int
    """Of tensors' values in them."""
    waiting: int
    """Sent, and not yet taken by the other end (at a sender); come, and not yet received (at a receiver)."""
    capacity: int
    """Messages that the link holds."""


class LinkEnd(Waitable):
    """What both ends have in common.

    Args:
        edge: The name of the edge.
        peer: Who is at the other end, for messages to people.
        capacity: Messages that the link holds.
    """

    def __init__(self, edge: str, peer: str, capacity: int) -> None:
        self.edge = edge
        self.peer = peer
        self.capacity = capacity
        self.closed = False
        self.on_message: Callable[[int, Message], None] | None = None
        """Called with each message that was sent or received, and its number."""
        self._messages = 0
        self._bytes = 0

    @abstractmethod
    def close(self) -> None:
        """End the link from here; the other end may still receive what was sent."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """At a sender: sent, and not yet taken by the other end. At a receiver: come, and not yet received."""

    @property
    def settled(self) -> bool:
        """Whether nothing that was sent from here gets lost if this process ends now."""
        return True

    def statistics(self) -> LinkStatistics:
        """Return what went through this end so far."""
        return LinkStatistics(messages=self._messages, bytes=self._bytes, waiting=self.waiting, capacity=self.capacity)

    def _count(self, header: Header, message: Message) -> None:
        if self.on_message is not None:
            self.on_message(self._messages, message)
        self._messages += 1
        self._bytes += header.form.payload_bytes

    def _check_open(self, doing: str) -> None:
        if self.closed:
            raise LinkClosedError(f"cannot {doing} on edge {self.edge}: this end was closed")

    def _over(self, ended: bool, doing: str) -> PeerEndedError | PeerGoneError:
        """Return what to raise when the other end is no more: closed in order, or gone with its process."""
        if ended:
            return PeerEndedError(f"cannot {doing} any more on edge {self.edge}: {self.peer} has closed it")
        return PeerGoneError(f"cannot {doing} on edge {self.edge}: {self.peer} is gone")


class Sender(LinkEnd):
    """The end that messages go into."""

    @property
    def credits(self) -> int:
        """How many messages may be sent before one is taken."""
        return self.capacity - self.waiting

    @property
    def full(self) -> bool:
        """Whether no message may be sent before one is taken."""
        return self.waiting >= self.capacity

    @abstractmethod
    def try_send(self, message: Message) -> bool:
        """Send a message if the link is not full, and return whether it was sent."""

    def send(self, message: Message, timeout: float) -> None:
        """Send a message, and wait for at most `timeout` seconds for a full link to have room again."""
        self._check_open("send")
        with Waiter([self]) as waiter:
            for _ in waiter.rounds(timeout):
                if self.try_send(message):
                    return
        what = f"send {type(message).__name__} {message.step}"
        raise LinkTimeoutError(
            f"cannot {what} on edge {self.edge}: {self.peer} took nothing for {timeout:g} s, and all "
            f"{self.capacity} places are full"
        )

    def header_for(self, message: Message) -> Header:
        """Return the header with which the message would be sent now."""
        if message.edge != self.edge:
            raise MessageError(f"a message for edge {message.edge} was to be sent on edge {self.edge}")
        return header_of(message, self._messages)


class Receiver(LinkEnd):
    """The end that messages come out of."""

    @abstractmethod
    def try_receive(self, *, own: bool = True) -> Message | None:
        """Return the next message if it has come.

        One that is not one's own is good until `give_back` or the next message: its values may lie in the link.
        """

    def give_back(self) -> None:
        """Let the link have the place of the last message, which was not one's own."""

    def receive(self, timeout: float) -> Message:
        """Return the next message, and wait for it for at most `timeout` seconds."""
        self._check_open("receive")
        with Waiter([self]) as waiter:
            for _ in waiter.rounds(timeout):
                message = self.try_receive()
                if message is not None:
                    return message
        raise LinkTimeoutError(
            f"cannot receive on edge {self.edge}: {self.peer} sent nothing for {timeout:g} s, "
            f"after {self._messages} messages"
        )

    def _check_turn(self, header: Header, due: int) -> None:
        """Refuse a message that is not the one of this edge that is due."""
        if header.form.edge != self.edge:
            raise FrameError(f"on edge {self.edge} {self.peer} sent a message for edge {header.form.edge}")
        if header.sequence != due:
            lost = header.sequence > due
            raise FrameError(
                f"on edge {self.edge} {self.peer} sent message {header.sequence} in the place of {due}: "
                f"{'something was lost' if lost else 'a message came twice'}"
            )


def memory_link(
    edge: str, capacity: int, *, names: tuple[str, str] = ("sender", "receiver")
) -> tuple[Sender, Receiver]:
    """Return the two ends of a link inside one process; each may be used from a thread of its own."""
    shared = _Shared(deque(), set(), Lock())
    sender = _MemorySender(edge, names[1], capacity, shared)
    receiver = _MemoryReceiver(edge, names[0], capacity, shared)
    sender.other, receiver.other = receiver, sender
    return sender, receiver


@dataclass(slots=True)
class _Shared:
    """What the two ends of an in-memory link share."""

    queue: deque[tuple[Header, Message]]
    closed: set[LinkEnd]
    lock: Lock
    """Held while a bell is rung or closed: a closed descriptor's number may soon be another one's."""


class _MemoryEnd(LinkEnd):
    """What both in-memory ends do alike; each has a bell that the other one rings."""

    other: _MemoryEnd

    def __init__(self, edge: str, peer: str, capacity: int, shared: _Shared) -> None:
        super().__init__(edge, peer, capacity)
        self._shared = shared
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._bell

    def refresh(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with self._shared.lock:
            self._shared.closed.add(self)
            os.close(self._bell)
        self._ring()

    @property
    def gone(self) -> bool:
        return self.other in self._shared.closed

    @property
    def waiting(self) -> int:
        return len(self._shared.queue)

    def _ring(self) -> None:
        with self._shared.lock:
            if self.other not in self._shared.closed:
                os.eventfd_write(self.other.fileno(), 1)


class _MemorySender(_MemoryEnd, Sender):
    def try_send(self, message: Message) -> bool:
        self._check_open("send")
        header = self.header_for(message)
        if self.gone:
            raise self._over(True, "send")
        if self.full:
            return False
        values = tuple([value.detach().contiguous() for value in message.values])
        self._shared.queue.append((header, load(header, values)))
        self._count(header, message)
        self._ring()
        return True


class _MemoryReceiver(_MemoryEnd, Receiver):
    def try_receive(self, *, own: bool = True) -> Message | None:
        self._check_open("receive")
        ended = self.gone
        if not self._shared.queue:
            if ended:
                raise self._over(True, "receive")
            return None
        header, message = self._shared.queue.popleft()
        self._check_turn(header, self._messages)
        self._count(header, message)
        self._ring()
        return message
