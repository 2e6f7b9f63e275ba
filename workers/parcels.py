"""Links over whatever carries parcels: between processes of a host or of several.

    sender                                                receiver
      [sequence, step, form], value, value .. ---->    keeps what has come until it is asked for
      has credits again                       <----    how many it has taken, a quarter of the places at a time
      "!" a clean end                        <---->    "!"

A clean run's receiver ends first: what was sent would be lost with its sender, if it had not been taken by then.

A parcel is a head of some bytes, and values, which come as bytes. `zeromq.py` and `distributed.py` carry them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence

from torch import Tensor

from stepahead.pipeline import FrameError, Message

from .channels import LinkEnd, Receiver, Sender
from .waiting import Waitable
from .wire import Header, Raw, check_sizes, header_in, load, pack_header, tensor_of

__all__ = ["MOST_WAITING", "Carrier", "Parcel", "ParcelReceiver", "ParcelSender"]

Parcel = tuple[bytes, Sequence[Raw]]
"""A head and values, as they have come."""
MOST_WAITING = 256
"""Parcels that have come and were not taken; more than any link has credits."""
END = b"!"
COUNT_BYTES = 8


class Carrier(Waitable):
    """One end of a connection that carries parcels both ways, in order."""

    @abstractmethod
    def send(self, head: bytes, values: Sequence[Tensor] = ()) -> None:
        """Send a parcel, as its values are now, without waiting for anybody."""

    @abstractmethod
    def take(self) -> list[Parcel]:
        """Return the parcels that have come since; they are the caller's own."""

    @property
    def stirs(self) -> bool:
        """Whether something may have come, or the other end gone: to be asked often, so it is quick."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection, when what was sent is out."""

    def refresh(self) -> None:
        """Leave all that came to `take`."""


class _ParcelEnd(LinkEnd):
    """What both ends do alike."""

    brought = True

    def __init__(self, edge: str, peer: str, capacity: int, carrier: Carrier) -> None:
        super().__init__(edge, peer, capacity)
        self.carrier = carrier
        self._ended = self._lost = False
        self._news = 0

    def fileno(self) -> int:
        return self.carrier.fileno()

    def refresh(self) -> None:
        self.carrier.refresh()
        self._take_in()

    def news(self) -> int:
        if not self.closed and self.carrier.stirs:  # its descriptor may tell once only, perhaps while we sent
            self._take_in()
        return self._news

    @property
    def gone(self) -> bool:
        return self._lost

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if not self._lost:
            self.carrier.send(END)
        self.carrier.close()

    def _take_in(self) -> None:
        lost = self.carrier.gone  # before what it sent is taken: then all that came before its end is there
        for head, values in self.carrier.take():
            self._news += 1
            if head == END:
                self._ended = True
            else:
                self._hear(head, values)
        if lost and not self._lost:
            self._lost = True
            self._news += 1

    @abstractmethod
    def _hear(self, head: bytes, values: Sequence[Raw]) -> None:
        """Take note of what the other end sent."""


class ParcelSender(_ParcelEnd, Sender):
    """The sending end."""

    def __init__(self, edge: str, peer: str, capacity: int, carrier: Carrier) -> None:
        super().__init__(edge, peer, capacity, carrier)
        self._taken = 0

    @property
    def waiting(self) -> int:
        return self._messages - self._taken

    @property
    def settled(self) -> bool:
        return self._ended or self._lost  # a receiver that has all that it wants says so

    def try_send(self, message: Message) -> bool:
        self._check_open("send")
        header = self.header_for(message)
        if self.carrier.stirs:
            self._take_in()
        if self._lost or self._ended:
            raise self._over(self._ended, "send")
        if self.full:
            return False
        self.carrier.send(pack_header(header), message.values)
        self._count(header, message)
        return True

    def _hear(self, head: bytes, values: Sequence[Raw]) -> None:
        taken = int.from_bytes(head, "little")
        if len(head) != COUNT_BYTES or values or not self._taken <= taken <= self._messages:
            what = f"{taken} of {self._messages} messages" if len(head) == COUNT_BYTES else f"{len(head)} bytes"
            raise FrameError(f"a link frame lies: on edge {self.edge} {self.peer} says that it took {what}")
        self._taken = taken


class ParcelReceiver(_ParcelEnd, Receiver):
    """The receiving end."""

    def __init__(self, edge: str, peer: str, capacity: int, carrier: Carrier) -> None:
        super().__init__(edge, peer, capacity, carrier)
        self._inbox: deque[tuple[Header, tuple[Tensor, ...]]] = deque()
        self._lent = False
        self._told = 0

    @property
    def waiting(self) -> int:
        return len(self._inbox)

    def try_receive(self, *, own: bool = True) -> Message | None:
        self._check_open("receive")
        self.give_back()
        if not self._inbox and self.carrier.stirs:
            self._take_in()
        if not self._inbox:
            if self._ended or self._lost:
                raise self._over(self._ended, "receive")
            return None
        header, values = self._inbox.popleft()
        message = load(header, values, own=None)  # what a carrier brings is nobody else's
        self._count(header, message)
        self._lent = True
        if own:
            self.give_back()
        return message

    def give_back(self) -> None:
        if not self._lent:
            return
        self._lent = False
        if self._messages - self._told > self.capacity // 4:
            self._told = self._messages
            if not (self._ended or self._lost):
                self.carrier.send(self._told.to_bytes(COUNT_BYTES, "little"))

    def _hear(self, head: bytes, values: Sequence[Raw]) -> None:
        header = header_in(head)
        self._check_turn(header, self._messages + len(self._inbox))
        if len(self._inbox) + self._lent >= self.capacity:
            raise FrameError(f"on edge {self.edge} {self.peer} sent more than the {self.capacity} messages it may")
        check_sizes(header, [len(value) for value in values])
        places = zip(values, header.form.places, strict=True)
        self._inbox.append((header, tuple([tensor_of(value, spec) for value, (_, _, spec) in places])))
