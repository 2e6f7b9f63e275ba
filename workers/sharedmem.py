"""Links through shared memory: payloads in a ring of slots, and a socket that rings for whoever waits.

    sender                                                        receiver
      writes header and values into a free slot,
      counts it as sent                   ---- . if it dozes --->   reads them out of the slot,
      has a credit again                 <---- . if it dozes ----   counts it as taken

The counters are in the memory, each written by one end only. Before an end waits it leaves word there that it dozes,
and looks once more; the other end counts first, and then reads whether to ring. Python promises no order between what
one process writes and another reads, and not every processor keeps it: a lock that is let go and taken again does, so
every access to a counter has one (`Memory._fence`): so on x86-64 and on ARMv8, with the locks of CPython and glibc.

The memory is a sealed, fully allocated memfd: it has no name that could leak, it cannot shrink under a reader, and
when the machine has no memory left the sender hears of it before it writes. It is made when the first message shows
how large slots must be, and travels over the socket ("+", with the descriptor); a larger message later, once all
slots are free, brings larger slots. "!" is a clean end; a socket that ends without it tells that the peer died.

Whoever holds a duplicate of its descriptor can set another process in the place of one that died: the end that lives
on calls `adopt`, the new one is made with `memory`.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

from stepahead.pipeline import FrameError, LinkError, Message

from .channels import LinkEnd, Receiver, Sender
from .wire import HEADER_LIMIT, Form, Header, decode_header, encode_header, load, places_in, store

__all__ = ["Memory", "SharedReceiver", "SharedSender", "make_sockets"]

WAKE, MEMORY, END = b".", b"+", b"!"
CONTROL_BYTES = 4096
HEAD = struct.Struct("<8sI4xQ")
MAGIC = b"stepahd1"
SENT, TAKEN, SENDER_DOZES, RECEIVER_DOZES = 16, 32, 48, 64
"""Where the counters and the words are, in numbers of 8 bytes: each on cache lines that only one end writes."""
LENGTH = struct.Struct("<I")
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MOST_SLOTS = 100
"""A socket holds some 278 rings; an end that dozes is rung for at most once for each slot."""
MOST_KNOWN = 256
RINGS = 256
DESCRIPTOR_SPACE = socket.CMSG_SPACE(array.array("i").itemsize)


def make_sockets() -> tuple[socket.socket, socket.socket]:
    """Return the sockets for the two ends of a link: the sender's, the receiver's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Memory:
    """A ring of slots in a memfd, mapped.

    The first page says how many slots there are and how large, and has the counters and words. Each slot is a header,
    with its length before it, and a payload.
    """

    slots: int
    payload_bytes: int
    """What one slot's payload may have."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        size = os.fstat(descriptor).st_size
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise FrameError("the memory of a link is not sealed: it could shrink while it is read")
        if size < CONTROL_BYTES:
            raise FrameError(f"the memory of a link has {size} bytes, and needs at least {CONTROL_BYTES}")
        self._map = mmap.mmap(descriptor, size)
        magic, self.slots, self.payload_bytes = HEAD.unpack_from(self._map)
        self._stride = _page(LENGTH.size + HEADER_LIMIT) + self.payload_bytes
        if magic != MAGIC or not 0 < self.slots <= MOST_SLOTS or CONTROL_BYTES + self.slots * self._stride != size:
            self._map.close()
            raise FrameError(f"the memory of a link lies: {self.slots} slots of {self.payload_bytes} in {size} bytes")
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._known: dict[tuple[int, bytes], tuple[Tensor, ...]] = {}
        self._numbers: memoryview[int] = memoryview(self._map)[:CONTROL_BYTES].cast("Q")
        self._lock = Lock()
        self.closed = False

    @classmethod
    def create(cls, slots: int, payload_bytes: int, name: str) -> Memory:
        """Make a ring whose slots hold payloads of that many bytes."""
        payload_bytes = _page(max(payload_bytes, 1))
        size = CONTROL_BYTES + slots * (_page(LENGTH.size + HEADER_LIMIT) + payload_bytes)
        descriptor = -1
        try:
            descriptor = os.memfd_create(f"stepahead-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.posix_fallocate(descriptor, 0, size)  # or a full machine would kill whoever touches it, by SIGBUS
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
            os.pwrite(descriptor, HEAD.pack(MAGIC, slots, payload_bytes), 0)
            return cls(descriptor)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise LinkError(
                f"no memory for edge {name}: {slots} slots of {payload_bytes // 1024:,} KiB cannot be had "
                f"({error.strerror}); free some or raise the limit, or use fewer slots (--window) or smaller batches"
            ) from error

    def get(self, which: int) -> int:
        """Return a counter or a word; nothing that comes later is read or written before it."""
        value = self._numbers[which]
        self._fence()
        return value

    def set(self, which: int, value: int) -> None:
        """Set it, after all that came before was written, and before anything later is read or written."""
        self._fence()
        self._numbers[which] = value
        self._fence()

    def write(self, number: int, header: Header, message: Message) -> None:
        """Put a message into the slot of its number, and count it as sent."""
        start = self._start(number)
        raw = encode_header(header)
        LENGTH.pack_into(self._map, start, len(raw))
        self._map[start + LENGTH.size : start + LENGTH.size + len(raw)] = raw
        store(message, self._places(number, header.form))
        self.set(SENT, number + 1)

    def read_header(self, number: int) -> Header:
        """Return the header in the slot of a number, checked."""
        start = self._start(number)
        (length,) = LENGTH.unpack_from(self._map, start)
        if length > HEADER_LIMIT:
            raise FrameError(f"a link frame lies: its header has {length} bytes, at most {HEADER_LIMIT} are allowed")
        header = decode_header(self._map[start + LENGTH.size : start + LENGTH.size + length])
        claimed = header.form.payload_bytes
        if claimed > self.payload_bytes:
            raise FrameError(f"a link frame lies: it speaks of {claimed} bytes in a slot of {self.payload_bytes}")
        return header

    def read(self, number: int, header: Header, *, own: bool) -> Message:
        """Return the message in the slot of its number."""
        return load(header, self._places(number, header.form), own=own)

    def close(self) -> None:
        """Let go of the memory here; it is freed when all others have."""
        if self.closed:
            return
        self.closed = True
        self._numbers.release()
        del self._bytes
        self._known.clear()
        with suppress(BufferError):  # a tensor that somebody still holds keeps it mapped
            self._map.close()
        os.close(self.descriptor)

    def _fence(self) -> None:
        """Keep what comes before and what comes after apart, as other processes see it."""
        with self._lock:
            pass
        with self._lock:  # between letting go and taking again nothing passes, in either direction
            pass

    def _start(self, number: int) -> int:
        return CONTROL_BYTES + number % self.slots * self._stride

    def _places(self, number: int, form: Form) -> tuple[Tensor, ...]:
        """Return the tensors in a slot; they are made once, for to make them takes longer than to copy a small one."""
        key = number % self.slots, form.raw
        places = self._known.get(key)
        if places is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            end = self._start(number) + self._stride
            places = self._known[key] = places_in(self._bytes[end - self.payload_bytes : end], form)
        return places


class _SharedEnd(LinkEnd):
    """What both ends do alike: ring, and hear the other end ring."""

    def __init__(self, edge: str, peer: str, capacity: int, bell: socket.socket) -> None:
        super().__init__(edge, peer, capacity)
        self.memory: Memory | None = None
        self._ended = self._lost = False
        self._use(bell)

    def fileno(self) -> int:
        return self.bell.fileno()

    def refresh(self) -> None:
        try:
            rung, attached, _, _ = self.bell.recvmsg(RINGS, DESCRIPTOR_SPACE)
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
        super().__init__(edge, peer, capacity, bell)
        if memory is not None:
            self.memory = Memory(memory)
            self._messages = self.memory.get(SENT)
            self._hand_over(self.memory)

    @property
    def waiting(self) -> int:
        return self._checked(self._messages - self.memory.get(TAKEN), "took") if self.memory else 0

    def news(self) -> int:
        return self.memory.get(TAKEN) if self.memory else 0

    def doze(self, dozing: bool) -> None:
        if self.memory:  # with room left there is nothing to be rung for
            self.memory.set(SENDER_DOZES, int(dozing and (self._refused or not self.credits)))

    def try_send(self, message: Message) -> bool:
        self._check_open("send")
        header = self.header_for(message)
        if self._lost or self._ended:
            raise self._over(self._ended, "send")
        waiting = self.waiting
        fits = self.memory is not None and header.form.payload_bytes <= self.memory.payload_bytes
        # larger slots can come when the smaller ones are all free
        self._refused = waiting >= self.capacity or (not fits and waiting > 0)
        if self._refused:
            return False
        if not fits:
            self._make_memory(header.form.payload_bytes)
        assert self.memory is not None
        self.memory.write(self._messages, header, message)
        self._count(header, message)
        if self.memory.get(RECEIVER_DOZES):
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
    """The receiving end; `bell` is the receiver's socket of `make_sockets`."""

    def __init__(self, edge: str, peer: str, capacity: int, bell: socket.socket) -> None:
        self._lent = False
        super().__init__(edge, peer, capacity, bell)

    @property
    def waiting(self) -> int:
        return self._checked(self.memory.get(SENT) - self._messages, "sent") if self.memory else 0

    def news(self) -> int:
        return self.memory.get(SENT) if self.memory else 0

    def doze(self, dozing: bool) -> None:
        if self.memory:
            self.memory.set(RECEIVER_DOZES, int(dozing))

    def try_receive(self, *, own: bool = True) -> Message | None:
        self._check_open("receive")
        self.give_back()
        if self.memory is None or not self.waiting:
            if self._ended or self._lost:
                raise self._over(self._ended, "receive")
            return None
        header = self.memory.read_header(self._messages)
        self._check_turn(header)
        message = self.memory.read(self._messages, header, own=own)
        self._lent = True
        self._count(header, message)
        if own:
            self.give_back()
        return message

    def give_back(self) -> None:
        if not self._lent or self.memory is None:
            return
        self._lent = False
        self.memory.set(TAKEN, self._messages)
        if self.memory.get(SENDER_DOZES) and self.waiting <= self.capacity // 2:  # not for every place of many
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
        try:
            memory = Memory(descriptor)
        except FrameError:
            os.close(descriptor)
            raise
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


def _page(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
