"""Parcels over torch.distributed: gloo between CPUs, NCCL between GPUs.

gloo tells nobody when something has come, so a thread stands at each way: one sends what is in a queue, the other one
receives, and rings. A parcel goes as a front of fixed size, which says what follows: so a receive is only begun once
its send was announced.

    front     the length of the head and of each value, and the head; small values too
    values    each by itself; between GPUs over NCCL

Where a host, or the way to it, may be gone without a word, beats are sent too: fronts with nothing behind them.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import accumulate, pairwise
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from traceback import clear_frames
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from stepahead.pipeline import FrameError, StepaheadError
from stepahead.pipeline.devices import Point, point_in_queue

from .pairs import GlooPair, Pair
from .parcels import MOST_WAITING, Carrier, Parcel
from .wire import HEADER_LIMIT, MOST_PARTS, MOST_VALUES, check_sizes, header_in, memory_of, plain_of

__all__ = ["DistributedCarrier"]

FRONT = struct.Struct(f"<ii{MOST_PARTS}q")
FRONT_BYTES = 8192
"""Room for the longest of heads, and for some values."""
BEAT, GOODBYE = -1, -2
"""In place of the length of a head: nothing follows; nothing will ever follow."""
BEAT_EVERY, SILENCE = 1.0, 10.0
"""Seconds between two beats, and without anything until the other end is taken for dead: longer than any code keeps
Python's lock for, which a beat needs. The line to a host's outpost does not need it, and tells of a cut much sooner."""
LINGER = 2.0
"""Seconds for which what was sent may still go out after an end was closed."""
PATIENCE = 300.0
"""Seconds to wait for the other end to come, unless said otherwise."""
FOREVER = timedelta(days=365)
CPU = torch.device("cpu")


class DistributedCarrier(Carrier):
    """One end.

    Args:
        store: Where the two ends find each other.
        name: Of the connection, in the store.
        rank: 0 at one end, 1 at the other.
        host: The address by which the other end reaches this host.
        device: Where the values of parcels go from and to.
        values: Makes the pair that carries values, given store and rank; unless given, they go where the fronts go.
        beats: Whether the other end is taken for dead when it is silent for long, as is needed between hosts.
        patience: Seconds to wait for the other end to come.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        rank: int,
        *,
        host: str = "127.0.0.1",
        device: torch.device = CPU,
        values: Callable[[Store, int], Pair] | None = None,
        beats: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        self._store = PrefixStore(f"stepahead/{name}", store)
        self._patience = patience
        self._rank, self._host, self._device, self._make_pair = rank, host, device, values
        self._beats = beats
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = Lock()
        """Held while the bell is rung or closed: a closed descriptor's number may soon be another one's."""
        self._outbox: SimpleQueue[tuple[Tensor, list[Tensor], Point | None] | None] = SimpleQueue()
        """Fronts, the values behind them, and from when on these are there; None for no more."""
        self._inbox: deque[Parcel] = deque()
        self._error: StepaheadError | None = None
        self._gone = self._closed = False
        self._pairs: SimpleQueue[tuple[Pair, Pair] | None] = SimpleQueue()
        """What to send through, for the sending thread; None if there will be nothing."""
        self._sending = Thread(target=self._send, daemon=True, name="link out")
        for thread in (self._sending, Thread(target=self._receive, daemon=True, name="link in")):
            thread.start()

    def fileno(self) -> int:
        return self._bell

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def stirs(self) -> bool:
        return self._gone or bool(self._inbox) or self._error is not None

    def refresh(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def send(self, head: bytes, values: Sequence[Tensor] = ()) -> None:
        sizes = [value.nbytes for value in values]
        if self._is_inline(len(head), sizes):
            plain = [plain_of(value) for value in values]
            self._outbox.put((_front(len(head), sizes, head, *map(memory_of, plain)), [], None))
        else:
            copies = [_bytes_in(value, self._device) for value in values]
            self._outbox.put((_front(len(head), sizes, head), copies, point_in_queue(self._device)))

    def take(self) -> list[Parcel]:
        error = self._error  # before what came is taken: then all of it is there
        parcels = [self._inbox.popleft() for _ in range(len(self._inbox))]
        if error is not None and not parcels:
            raise error
        return parcels

    def close(self) -> None:
        with self._lock:
            self._closed = True
            os.close(self._bell)
        self._outbox.put(None)
        if not self._gone:
            self._sending.join(LINGER)

    def _receive(self) -> None:
        """Join the other end, and receive until the connection is over."""
        try:
            self._receive_all(*self._join())  # in no variable of this frame, which is not cleared below
        except StepaheadError as error:
            clear_frames(error.__traceback__)  # or they would keep the pairs, and these their threads and sockets
            self._error = error
        except RuntimeError:  # torch.distributed has no better word for it
            pass
        self._gone = True
        self._pairs.put(None)
        self._ring()

    def _send(self) -> None:
        """Send, once that is possible, until this end is closed."""
        pairs = self._pairs.get()
        with suppress(RuntimeError):  # the other end has closed; what it sent before is still to be received
            if pairs is not None:
                self._send_all(*pairs)

    def _ring(self) -> None:
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    def _join(self) -> tuple[Pair, Pair]:
        """Wait until the other end is there too, and let the sending thread begin: from then on, silence counts."""
        self._store.set(str(self._rank), "here")
        self._store.wait([str(1 - self._rank)], timedelta(seconds=self._patience))
        silence = timedelta(seconds=SILENCE) if self._beats else FOREVER
        fronts = GlooPair(self._store, self._rank, self._host, silence)
        pairs = fronts, fronts if self._make_pair is None else self._make_pair(self._store, self._rank)
        self._pairs.put(pairs)
        return pairs

    def _send_all(self, fronts: Pair, rest: Pair) -> None:
        while True:
            try:
                sent = self._outbox.get(timeout=BEAT_EVERY if self._beats else None)
            except Empty:
                fronts.put(_front(BEAT))
                continue
            if sent is None:
                fronts.put(_front(GOODBYE))
                return
            front, values, after = sent
            fronts.put(front)
            for value in filter(len, values):
                rest.put(value, after)

    def _receive_all(self, fronts: Pair, rest: Pair) -> None:
        front = bytearray(FRONT_BYTES)
        place = torch.frombuffer(front, dtype=torch.uint8)
        while True:
            fronts.get(place)
            length = _length(front)
            if length == GOODBYE:
                return
            if length != BEAT:
                self._inbox.append(self._rest_of(front, length, rest))
                self._ring()
            if len(self._inbox) > MOST_WAITING:
                raise FrameError(f"a link frame lies: {len(self._inbox)} parcels wait, more than a link has credits")

    def _rest_of(self, front: bytearray, length: int, rest: Pair) -> Parcel:
        """Return the parcel that a front announces."""
        sizes = _sizes(front)
        ends = list(accumulate(sizes, initial=FRONT.size + length))
        head = bytes(front[FRONT.size : ends[0]])
        if sizes:
            check_sizes(header_in(head), sizes)  # before there is memory for them
        if self._is_inline(length, sizes):
            return head, [memoryview(front[start:end]) for start, end in pairwise(ends)]  # a slice is a copy
        values = [rest.room(size) for size in sizes]
        for value in filter(len, values):
            rest.get(value)
        return head, values

    def _is_inline(self, length: int, sizes: Sequence[int]) -> bool:
        """Return whether the values go in the front."""
        return self._make_pair is None and FRONT.size + length + sum(sizes) <= FRONT_BYTES


def _front(length: int, sizes: Sequence[int] = (), *parts: Any) -> Tensor:
    """Return a front: the length of a head or what stands in its place, sizes of values, and the parts behind these."""
    numbers = FRONT.pack(length, len(sizes), *sizes, *[0] * (MOST_PARTS - len(sizes)))
    front = bytearray(b"".join((numbers, *parts)).ljust(FRONT_BYTES, b"\0"))
    return torch.frombuffer(front, dtype=torch.uint8)


def _length(front: bytearray) -> int:
    """Return the length of the head behind a front, or what stands in its place."""
    length = int(FRONT.unpack_from(front)[0])
    if not GOODBYE <= length <= HEADER_LIMIT:
        raise FrameError(f"a link frame lies: its header has {length} bytes, at most {HEADER_LIMIT} are allowed")
    return length


def _sizes(front: bytearray) -> list[int]:
    """Return the bytes of each value that a front announces."""
    _, count, *sizes = FRONT.unpack_from(front)
    if not 0 <= count <= MOST_PARTS or not all(0 <= size <= MOST_VALUES for size in sizes[:count]):
        raise FrameError(f"a link frame lies: it announces {count} values of {max(sizes)} bytes")
    return sizes[:count]


def _bytes_in(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor's values as bytes on a device, a copy in any case."""
    plain = plain_of(value, device)
    flat = plain.view(-1).view(torch.uint8)
    return flat.clone() if plain.data_ptr() == value.data_ptr() else flat
