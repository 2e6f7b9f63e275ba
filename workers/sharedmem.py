"""Links through shared memory: payloads in a ring of slots, and a socket that rings for whoever waits.

    sender                                                        receiver
      writes header and values into a free slot,
      counts it as sent                   ---- . if it dozes --->   reads them out of the slot,
      has a credit again                 <---- . if it dozes ----   counts it as taken

Before an end waits it leaves word in the memory that it dozes, and looks once more; the other end counts first, and
then reads whether to ring. For a sender it rings when a quarter of the slots are still full: not for every slot, and
not so late that the receiver would run dry.

The memory (`ring.py`) is made when the first message shows how large slots must be, and travels over the socket ("+",
with the descriptor); a larger message later, once all slots are free, brings larger slots. "!" is a clean end; a socket
that ends without it tells that the peer died.

Whoever holds a duplicate of its descriptor can set another process in the place of one that died: the end that lives
on calls `adopt`, the new one is made with `memory`.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable
from contextlib import suppress

import torch

from stepahead.pipeline import FrameError, Message

from .channels import LinkEnd, Receiver, Sender
from .ring import RECEIVER_DOZES, SENDER_DOZES, SENT, TAKEN, Memory

__all__ = ["SharedReceiver", "SharedSender", "make_sockets"]

WAKE, MEMORY, END = b".", b"+", b"!"
RINGS = 256
CPU = torch.device("cpu")
DESCRIPTOR_SPACE = socket.CMSG_SPACE(array.array("i").itemsize)


def make_sockets() -> tuple[socket.socket, socket.socket]:
    """Return the sockets for the two ends of a link: the sender's, the receiver's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class _SharedEnd(LinkEnd):
    """What both ends do alike: ring, and hear the other end ring."""

    rings = False

    def __init__(self, edge: str, peer: str, capacity: int, bell: socket.socket) -> None:
        super().__init__(edge, peer, capacity)
        self.memory: Memory | None = None
        self._ended = self._lost = False
        self._use(bell)

    def fileno(self) -> int:
        return self.bell.fileno()

    def refresh(self) -> None:
        try:
            rung, attached, _, _ = self.bell.recvmsg(RINGS, DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except ConnectionResetError:  # the peer closed before it had read all that we rang; what it rang comes next
            return
        self._hear(rung, _descriptors(attached) if attached else [])
        self._lost = not rung
        if attached:  # a read ends where a descriptor came
            self.refresh()

    @property
    def gone(self) -> bool:
        return self._lost

    def adopt(self, bell: socket.socket) -> None:
        """Go on with another process at the other end, over a new socket; a `Waiter` must be made anew."""
        self.bell.close()
        self._ended = self._lost = False
        self._use(bell)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with suppress(OSError):
            self.bell.send(END)
        self.bell.close()
        if self.memory:
            self.memory.close()
            self.memory = None

    def _checked(self, waiting: int, did: str) -> int:
        """Return how many messages wait, as the other end's counter has it, after checking that it can be."""
        if 0 <= waiting <= self.capacity:
            return waiting
        raise FrameError(f"on edge {self.edge} {self.peer} {did} what makes {waiting} of {self.capacity} messages wait")

    def _mapped(self, descriptor: int) -> Memory:
        """Return memory that the other end or a predecessor made."""
        try:
            memory = Memory(descriptor)
        except FrameError:
            os.close(descriptor)
            raise
        if memory.slots != self.capacity:
            memory.close()
            raise FrameError(f"the memory of edge {self.edge} has {memory.slots} slots, and the link {self.capacity}")
        return memory

    def _use(self, bell: socket.socket) -> None:
        bell.setblocking(False)
        self.bell = bell

    def _hear(self, rung: bytes, descriptors: list[int]) -> None:
        """Take note of what was rung."""
        self._ended = self._ended or END in rung

    def _wake(self) -> None:
        """Ring for the other end; if it is gone, or rung for already, the next look at the socket will tell."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self.bell.send(WAKE)


class SharedSender(_SharedEnd, Sender):
    """The sending end.

    Args:
        edge, peer, capacity: As for every link.
        bell: The sender's socket of `make_sockets`.
        memory: A duplicate of the memory's descriptor, to take the place of a sender that died.
        on_memory: Called with the descriptor of memory that was just made, for whoever keeps duplicates.
    """

    def __init__(
        self,
        edge: str,
        peer: str,
        capacity: int,
        bell: socket.socket,
        *,
        memory: int | None = None,
        on_memory: Callable[[int], None] | None = None,
    ) -> None:
        self._on_memory = on_memory
        self._refused = False
        self._taken = 0
        super().__init__(edge, peer, capacity, bell)
        if memory is not None:
            self.memory = self._mapped(memory)
            self._messages = self.memory.get(SENT)
            self._hand_over(self.memory)

    @property
    def waiting(self) -> int:
        if self.memory is None:
            return 0
        taken = self.memory.get(TAKEN)
        waiting = self._checked(self._messages - taken, "took")
        self._taken = taken
        return waiting

    @property
    def full(self) -> bool:
        # the counter is on its way from another core: it is not asked while what it said last is good enough
        return self._messages - self._taken >= self.capacity and super().full

    def news(self) -> int:
        return self.memory.glimpse(TAKEN) if self.memory else 0

    def doze(self, dozing: bool) -> None:
        if self.memory:  # with room left there is nothing to be rung for
            self.memory.set(SENDER_DOZES, int(dozing and (self._refused or self.full)))

    def try_send(self, message: Message) -> bool:
        self._check_open("send")
        header = self.header_for(message)
        if self._lost or self._ended:
            raise self._over(self._ended, "send")
        fits = self.memory is not None and header.form.payload_bytes <= self.memory.payload_bytes
        self._refused = self.full if fits else self.waiting > 0  # larger slots come when the smaller ones are all free
        if self._refused:
            return False
        if not fits:
            self._make_memory(header.form.payload_bytes)
        assert self.memory is not None
        self.memory.write(self._messages, header, message)
        self._count(header, message)
        if self.memory.glimpse(RECEIVER_DOZES):  # behind a set, whose fence keeps both from missing each other
            self._wake()
        return True

    def adopt(self, bell: socket.socket) -> None:
        super().adopt(bell)
        if self.memory:
            self._hand_over(self.memory)

    def _make_memory(self, payload_bytes: int) -> None:
        memory = Memory.create(self.capacity, payload_bytes, self.edge)
        memory.set(SENT, self._messages)
        memory.set(TAKEN, self._messages)
        if self.memory:
            self.memory.close()
        self.memory = memory
        if self._on_memory:
            self._on_memory(memory.descriptor)
        self._hand_over(memory)

    def _hand_over(self, memory: Memory) -> None:
        """Give the memory to the process at the other end."""
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.bell, [MEMORY], [memory.descriptor])


class SharedReceiver(_SharedEnd, Receiver):
    """The receiving end.

    Args:
        edge, peer, capacity: As for every link.
        bell: The receiver's socket of `make_sockets`.
        device: Where messages go that are to be one's own.
    """

    def __init__(self, edge: str, peer: str, capacity: int, bell: socket.socket, *, device: torch.device = CPU) -> None:
        self._device = device
        self._lent = False
        self._sent = 0
        super().__init__(edge, peer, capacity, bell)

    @property
    def waiting(self) -> int:
        if self.memory is None:
            return 0
        sent = self.memory.get(SENT)
        waiting = self._checked(sent - self._messages, "sent")
        self._sent = sent
        return waiting

    def news(self) -> int:
        return self.memory.glimpse(SENT) if self.memory else 0

    def doze(self, dozing: bool) -> None:
        if self.memory:
            self.memory.set(RECEIVER_DOZES, int(dozing))

    def try_receive(self, *, own: bool = True) -> Message | None:
        self._check_open("receive")
        self.give_back()
        if self.memory is None or (self._sent <= self._messages and not self.waiting):
            if self._ended or self._lost:
                raise self._over(self._ended, "receive")
            return None
        header = self.memory.read_header(self._messages)
        self._check_turn(header, self._messages)
        message = self.memory.read(self._messages, header, self._device if own else None)
        self._lent = True
        self._count(header, message)
        if own:
            self.give_back()
        return message

    def give_back(self) -> None:
        if not self._lent or self.memory is None:
            return
        self._lent = False
        self.memory.set(TAKEN, self._messages)  # whose fence keeps both from missing each other
        if self.memory.glimpse(SENDER_DOZES) and self.waiting <= max(self.capacity // 4, 1):
            self._wake()

    def adopt(self, bell: socket.socket) -> None:
        self.give_back()
        super().adopt(bell)
        self._wake()  # it may wait for what we gave back while nobody heard us

    def _hear(self, rung: bytes, descriptors: list[int]) -> None:
        super()._hear(rung, descriptors)
        for descriptor in descriptors:
            self._take_over(descriptor)

    def _take_over(self, descriptor: int) -> None:
        """Use the memory that the sender made; one that has none yet goes on where the memory says."""
        memory = self._mapped(descriptor)
        after = memory.get(TAKEN) + self._lent
        if self.memory:
            if after != self._messages:
                memory.close()
                raise FrameError(f"on edge {self.edge} {self.peer} goes on at {after}, not at {self._messages}")
            self.memory.close()
        self.memory, self._messages = memory, after


def _descriptors(attached: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in attached:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()
