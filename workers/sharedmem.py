"""Links through shared memory: payloads in a ring of slots, and a socket that rings for each.

    sender                                                        receiver
      writes header and values into a free slot,
      rings "." over the socket           ---------- . -------->    reads them out of the slot,
      has its credit back                <---------- . ---------    rings "." for the freed slot

The memory is a sealed, fully allocated memfd: it has no name that could leak, it cannot shrink under a reader, and
when the machine has no memory left the sender hears of it before it writes. It is made when the first message shows
how large slots must be, and travels over the socket ("+", with the descriptor); a larger message later, once all
slots are free, brings larger slots. "!" is a clean end; a socket that ends without it tells that the peer died.

What was sent and taken is counted in the memory too, so that whoever holds a duplicate of the descriptor can set
another process in the place of one that died: the end that lives on calls `adopt`, the new one is made with `memory`.
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

import torch
from torch import Tensor

from stepahead.pipeline import FrameError, LinkError, Message

from .channels import LinkEnd, Receiver, Sender
from .wire import HEADER_LIMIT, Form, Header, decode_header, encode_header, load, places_in, store

__all__ = ["Memory", "SharedReceiver", "SharedSender", "make_sockets"]

MESSAGE, MEMORY, END = b".", b"+", b"!"
CONTROL_BYTES = 4096
HEAD = struct.Struct("<8sI4xQ")
MAGIC = b"stepahd1"
SENT, TAKEN = slice(64, 72), slice(128, 136)
"""Where the counters are: each on a cache line that only one end writes."""
LENGTH = struct.Struct("<I")
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MOST_SLOTS = 4096
MOST_KNOWN = 256
RINGS = 256
DESCRIPTOR_SPACE = socket.CMSG_SPACE(array.array("i").itemsize)


def make_sockets() -> tuple[socket.socket, socket.socket]:
    """Return the sockets for the two ends of a link: the sender's, the receiver's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Memory:
    """A ring of slots in a memfd, mapped.

    The first page says how many slots there are and how large, and has the two counters. Each slot is a header,
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
        words = memoryview(self._map)
        self._sent: memoryview[int] = words[SENT].cast("Q")
        self._taken: memoryview[int] = words[TAKEN].cast("Q")

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

    @property
    def sent(self) -> int:
        return self._sent[0]

    @sent.setter
    def sent(self, count: int) -> None:
        self._sent[0] = count

    @property
    def taken(self) -> int:
        return self._taken[0]

    @taken.setter
    def taken(self, count: int) -> None:
        self._taken[0] = count

    def write(self, number: int, header: Header, message: Message) -> None:
        """Put a message into the slot of its number, and count it as sent."""
        start = self._start(number)
        raw = encode_header(header)
        LENGTH.pack_into(self._map, start, len(raw))
        self._map[start + LENGTH.size : start + LENGTH.size + len(raw)] = raw
        store(message, self._places(number, header.form))
        self.sent = number + 1

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
        self._sent.release()
        self._taken.release()
        del self._bytes
        self._known.clear()
        with suppress(BufferError):  # a tensor that somebody still holds keeps it mapped
            self._map.close()
        os.close(self.descriptor)

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
        """Go on with another process at the other end, over a new socket."""
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

    def _use(self, bell: socket.socket) -> None:
        bell.setblocking(False)
        self.bell = bell

    def _hear(self, rung: bytes, descriptors: list[int]) -> None:
        """Take note of what was rung."""
        self._ended = self._ended or END in rung

    def _ring(self, what: bytes) -> None:
        try:
            rung = self.bell.send(what)
        except BlockingIOError:
            rung = 0
        except (BrokenPipeError, ConnectionResetError):  # the next look at the socket will tell
            return
        if rung != len(what):
            raise LinkError(f"edge {self.edge} rang {len(what)} times, and {self.peer} did not listen")


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
        self._taken = 0
        self._on_memory = on_memory
        super().__init__(edge, peer, capacity, bell)
        if memory is not None:
            self.memory = Memory(memory)
            self._messages = self.memory.sent
            self._announce()

    @property
    def waiting(self) -> int:
        return self._messages - self._taken

    def try_send(self, message: Message) -> bool:
        self._check_open("send")
        header = self.header_for(message)
        if self._lost or self._ended:
            raise self._over(self._ended, "send")
        if not self.credits:
            return False
        if self.memory is None or header.form.payload_bytes > self.memory.payload_bytes:
            if self.waiting:
                return False  # larger slots can come when the smaller ones are all free
            self._make_memory(header.form.payload_bytes)
        assert self.memory is not None
        self.memory.write(self._messages, header, message)
        self._count(header, message)
        self._ring(MESSAGE)
        return True

    def adopt(self, bell: socket.socket) -> None:
        super().adopt(bell)
        self._announce()

    def _hear(self, rung: bytes, descriptors: list[int]) -> None:
        super()._hear(rung, descriptors)
        self._taken += rung.count(MESSAGE)

    def _make_memory(self, payload_bytes: int) -> None:
        memory = Memory.create(self.capacity, payload_bytes, self.edge)
        memory.sent = memory.taken = self._messages
        if self.memory:
            self.memory.close()
        self.memory = memory
        if self._on_memory:
            self._on_memory(memory.descriptor)
        self._hand_over(memory)

    def _announce(self) -> None:
        """Tell a new process at the other end what memory there is, and what it has not taken yet."""
        if self.memory:
            self._taken = self.memory.taken
            self._hand_over(self.memory)
            self._ring(MESSAGE * self.waiting)

    def _hand_over(self, memory: Memory) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.bell, [MEMORY], [memory.descriptor])


class SharedReceiver(_SharedEnd, Receiver):
    """The receiving end; `bell` is the receiver's socket of `make_sockets`."""

    def __init__(self, edge: str, peer: str, capacity: int, bell: socket.socket) -> None:
        self._available = self._owed = 0
        self._lent = False
        super().__init__(edge, peer, capacity, bell)

    @property
    def waiting(self) -> int:
        return self._available

    def try_receive(self, *, own: bool = True) -> Message | None:
        self._check_open("receive")
        self.give_back()
        if not self._available:
            if self._ended or self._lost:
                raise self._over(self._ended, "receive")
            return None
        if self.memory is None:
            raise FrameError(f"on edge {self.edge} {self.peer} rang without having sent the memory")
        header = self.memory.read_header(self._messages)
        self._check_turn(header)
        message = self.memory.read(self._messages, header, own=own)
        self._available -= 1
        self._lent = True
        self._count(header, message)
        if own:
            self.give_back()
        return message

    def give_back(self) -> None:
        if not self._lent or self.memory is None:
            return
        self._lent = False
        self.memory.taken = self._messages
        self._owed += 1
        if self._owed > self.capacity // 2 or not self._available:  # to ring for several wakes the sender less often
            self._ring(MESSAGE * self._owed)
            self._owed = 0

    def adopt(self, bell: socket.socket) -> None:
        super().adopt(bell)
        if self._lent and self.memory:
            self.memory.taken = self._messages
        self._lent = False
        self._available = self._owed = 0  # the new sender announces what is still to be taken

    def _hear(self, rung: bytes, descriptors: list[int]) -> None:
        super()._hear(rung, descriptors)
        for descriptor in descriptors:
            self._take_over(descriptor)
        self._available += rung.count(MESSAGE)
        if self._available > self.capacity:
            raise FrameError(f"on edge {self.edge} {self.peer} rang {self._available} times for {self.capacity} places")

    def _take_over(self, descriptor: int) -> None:
        """Use the memory that the sender made; one that has none yet goes on where the memory says."""
        try:
            memory = Memory(descriptor)
        except FrameError:
            os.close(descriptor)
            raise
        if self.memory:
            self.memory.close()
            if memory.taken != self._messages:
                raise FrameError(f"on edge {self.edge} {self.peer} goes on at {memory.taken}, not at {self._messages}")
        self.memory, self._messages = memory, memory.taken


def _descriptors(attached: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in attached:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()


def _page(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
