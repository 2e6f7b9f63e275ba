"""The ring: slots for messages in a memfd, mapped by both ends of a link, with the counters that say what is where.

It is sealed and fully allocated: it has no name that could leak, it cannot shrink under a reader, and when the machine
has no memory left whoever makes it hears of that before anything is written.

Each counter is written by one end only. Python promises no order between what one process writes and another reads, and
not every processor keeps it: a lock that is let go and taken again does, on x86-64 and on ARMv8, with the locks of
CPython and glibc. So `get` and `set` have one; `glimpse` has none, for what need not be in order or comes right behind
a `set`.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

from stepahead.pipeline import FrameError, LinkError, Message
from stepahead.pipeline.devices import pin, unpin

from .wire import FORM_LIMIT, Form, Header, header_from, load, places_in, store

__all__ = ["RECEIVER_DOZES", "SENDER_DOZES", "SENT", "TAKEN", "Memory"]

CONTROL_BYTES = 4096
HEAD = struct.Struct("<8sI4xQ")
MAGIC = b"stepahd1"
SENT, TAKEN, SENDER_DOZES, RECEIVER_DOZES = 16, 32, 48, 64
"""Where the counters and the words are, in numbers of 8 bytes: each on cache lines that only one end writes."""
NUMBER = 8
SLOT_HEAD = 3 * NUMBER
"""Bytes of the three numbers before the form in a slot: its length, the message's number, its step."""
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MOST_SLOTS = 100
"""A socket holds some 278 rings; an end that dozes is rung for at most once for each slot."""
MOST_KNOWN = 256


class Memory:
    """A ring of slots in a memfd, mapped.

    The first page says how many slots there are and how large, and has the counters and words. Each slot is a
    header and a payload. Only one thread at a time may use it: a fence lets go of a lock that nobody else can hold.
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
        self._stride = _page(SLOT_HEAD + FORM_LIMIT) + self.payload_bytes
        whole = self.payload_bytes % mmap.PAGESIZE == 0 and CONTROL_BYTES + self.slots * self._stride == size
        if magic != MAGIC or not 0 < self.slots <= MOST_SLOTS or not whole:
            self._map.close()
            raise FrameError(f"the memory of a link lies: {self.slots} slots of {self.payload_bytes} in {size} bytes")
        # a tensor keeps this alive, and this the mapping: a message that was borrowed can outlive its link
        held = (ctypes.c_char * size).from_buffer(self._map)
        self._bytes = torch.frombuffer(held, dtype=torch.uint8)
        self.pinned = pin(self._bytes)
        """Whether GPUs copy to and from it directly."""
        self._known: dict[tuple[int, Form], tuple[Tensor, ...]] = {}
        self._numbers: memoryview[int] = memoryview(self._map).cast("Q")
        lock = Lock()
        lock.acquire()  # held but inside of a fence
        self._take, self._let_go = lock.acquire, lock.release
        self.closed = False

    @classmethod
    def create(cls, slots: int, payload_bytes: int, name: str) -> Memory:
        """Make a ring whose slots hold payloads of that many bytes."""
        payload_bytes = _page(max(payload_bytes, 1))
        size = CONTROL_BYTES + slots * (_page(SLOT_HEAD + FORM_LIMIT) + payload_bytes)
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

    def glimpse(self, which: int) -> int:
        """Return a counter or a word, without a fence; to go on and read what the other end wrote, `get` it."""
        return self._numbers[which]

    def set(self, which: int, value: int) -> None:
        """Set it, after all that came before was written, and before anything later is read or written."""
        self._fence()
        self._numbers[which] = value
        self._fence()

    def write(self, number: int, header: Header, message: Message) -> None:
        """Put a message into the slot of its number, and count it as sent."""
        start = self._start(number)
        numbers, first, raw = self._numbers, start // NUMBER, header.form.raw
        numbers[first], numbers[first + 1], numbers[first + 2] = len(raw), header.sequence, header.step
        self._map[start + SLOT_HEAD : start + SLOT_HEAD + len(raw)] = raw
        store(message, self._places(number, header.form))
        self.set(SENT, number + 1)

    def read_header(self, number: int) -> Header:
        """Return the header in the slot of a number, checked."""
        start = self._start(number)
        numbers, first = self._numbers, start // NUMBER
        length = numbers[first]
        if length > FORM_LIMIT:
            raise FrameError(f"a link frame lies: its form has {length} bytes, at most {FORM_LIMIT} are allowed")
        raw = self._map[start + SLOT_HEAD : start + SLOT_HEAD + length]
        header = header_from(numbers[first + 1], numbers[first + 2], raw)
        claimed = header.form.payload_bytes
        if claimed > self.payload_bytes:
            raise FrameError(f"a link frame lies: it speaks of {claimed} bytes in a slot of {self.payload_bytes}")
        return header

    def read(self, number: int, header: Header, own: torch.device | None) -> Message:
        """Return the message in the slot of its number: its values where they are, or copied to a device."""
        return load(header, self._places(number, header.form), own)

    def close(self) -> None:
        """Let go of the memory here; it is freed when all others have."""
        if self.closed:
            return
        self.closed = True
        self._numbers.release()
        if self.pinned:
            unpin(self._bytes)
        del self._bytes
        self._known.clear()
        with suppress(BufferError):  # a borrowed message keeps it mapped
            self._map.close()
        os.close(self.descriptor)

    def _fence(self) -> None:
        """Keep what comes before and what comes after apart, as other processes see it."""
        self._take(False)  # fails, for it is held, unless an interrupt came between the next two lines
        self._let_go()
        self._take(False)  # between letting go and taking again nothing passes, in either direction

    def _start(self, number: int) -> int:
        return CONTROL_BYTES + number % self.slots * self._stride

    def _places(self, number: int, form: Form) -> tuple[Tensor, ...]:
        """Return the tensors in a slot; they are made once, for to make them takes longer than to copy a small one."""
        key = number % self.slots, form
        places = self._known.get(key)
        if places is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            end = self._start(number) + self._stride
            places = self._known[key] = places_in(self._bytes[end - self.payload_bytes : end], form)
        return places


def _page(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
