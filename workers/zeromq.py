"""Parcels over ZeroMQ: between processes of a host through a socket file, or between hosts over TCP.

Both ends are PAIR sockets; the receiving one listens. ZeroMQ's own thread takes in what comes. When the other end has
died, a socket that listened has nobody to write to any more; one that connected has a monitor that tells. That is at
once where the process died, and after some silence where a host or the way to it is gone.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from contextlib import suppress

import zmq
from torch import Tensor
from zmq.utils.monitor import recv_monitor_message

from stepahead.pipeline import FrameError, LinkError

from .guard import Guard
from .parcels import MOST_WAITING, Carrier, Parcel
from .wire import MOST_PARTS, memory_of, plain_of

__all__ = ["ZeroCarrier"]

LINGER = 2000
"""Milliseconds for which what was sent may still go out after an end was closed."""
MOST_BYTES = 2**34
"""That one value may have."""
NEVER = 2**30
"""Milliseconds until a new attempt to connect. With -1, which means none, ZeroMQ drops what came before the end."""
# as plain numbers: to ask an enumeration takes as long as to ask the socket
IN, OUT, EVENTS = int(zmq.POLLIN), int(zmq.POLLOUT), int(zmq.EVENTS)
NOBLOCK, MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
OVER = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
"""What the monitor of a socket that connects tells when it is not, or no longer, connected."""


class ZeroCarrier(Carrier):
    """One end.

    Args:
        address: Where to listen, or to connect to: `ipc://path`, `tcp://host:port`; a port to listen at may be `*`.
        listens: Whether to listen.
        guard: Who may connect, and whether what travels is encrypted.
        silence: Seconds without a sign of life until the other end is taken for dead, as is needed between hosts.
    """

    def __init__(
        self,
        address: str,
        *,
        listens: bool,
        guard: Guard | None = None,
        silence: float | None = None,
    ) -> None:
        self._joined = self._gone = False
        """Whether there has been another end, and is no more."""
        self._context = zmq.Context()  # of its own, so that to close it waits for what was sent
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        options = {
            zmq.SNDHWM: 0,  # the link's credits bound what is on its way
            zmq.RCVHWM: MOST_WAITING,  # of a peer that does not keep to them
            zmq.LINGER: LINGER,
            zmq.RECONNECT_IVL: NEVER,
            zmq.MAXMSGSIZE: MOST_BYTES,
            zmq.HEARTBEAT_IVL: round(silence * 250) if silence else 0,
            zmq.HEARTBEAT_TIMEOUT: round(silence * 1000) if silence else 0,
            zmq.IPV6: 1,
        }
        for option, value in options.items():
            self.socket.set(option, value)
        self._judge = guard.watch(self._context) if guard and listens else None
        if guard:
            guard.arm(self.socket, listens=listens)
        self._monitor: zmq.Socket[bytes] | None = None if listens else self.socket.get_monitor_socket(OVER)
        self._poll = select.epoll()
        for each in filter(None, (self.socket, self._monitor)):
            self._poll.register(each.fileno(), select.EPOLLIN)
        try:
            (self.socket.bind if listens else self.socket.connect)(address)
        except zmq.ZMQError as error:
            self.close()
            raise LinkError(f"cannot {'listen at' if listens else 'connect to'} {address}: {error.strerror}") from error
        self.address = bytes(self.socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        """Where it listens, with the port that it was given."""

    def fileno(self) -> int:
        return self._poll.fileno()

    @property
    def gone(self) -> bool:
        if self._monitor is None:
            events = self._events()
            self._gone = self._gone or (self._joined and not events & OUT)
        elif self._is_told():
            recv_monitor_message(self._monitor)
            self._gone = True
        return self._gone

    @property
    def stirs(self) -> bool:
        events = self._events()
        return bool(events & IN) or (not events & OUT if self._monitor is None else self._is_told())

    def _events(self) -> int:
        """Return what the socket can do now, and note if it can do anything: then the other end has joined."""
        events = int(self.socket.getsockopt(EVENTS))
        self._joined = self._joined or events != 0
        return events

    def _is_told(self) -> bool:
        """Return whether the monitor has something to tell."""
        return self._monitor is not None and bool(int(self._monitor.getsockopt(EVENTS)) & IN)

    def send(self, head: bytes, values: Sequence[Tensor] = ()) -> None:
        plain = [plain_of(value) for value in values]
        *parts, last = head, *map(memory_of, plain)  # one by one and copied: pyzmq's other ways take longer
        with suppress(zmq.Again):  # nobody is there any more
            for part in parts:
                self.socket.send(part, MORE)
            self.socket.send(last, NOBLOCK)

    def take(self) -> list[Parcel]:
        parcels: list[Parcel] = []
        with suppress(zmq.Again):  # what made it stir may have been no message, the end of a connection for example
            while self._events() & IN:  # to ask is quicker than to be told by an exception
                part = head = self.socket.recv(NOBLOCK, copy=False)
                values: list[memoryview] = []
                while part.more:  # to its end, or the next parcel would begin in its middle
                    part = self.socket.recv(NOBLOCK, copy=False)
                    if len(values) <= MOST_PARTS:
                        values.append(part.buffer)
                if len(values) > MOST_PARTS:
                    raise FrameError(f"a link frame lies: it has more than the {MOST_PARTS} parts that are allowed")
                parcels.append((head.bytes, values))
        return parcels

    def close(self) -> None:
        self._poll.close()
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(linger=0)
        self.socket.close()
        if self._judge is not None:
            self._judge.stop()
        self._context.term()
