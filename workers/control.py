"""The control connection of a worker: it says who it is, gets its link ends, reports, and hears when to stop.

A Unix socket in the run folder, which only its user can enter. Each message is one packet of msgpack, a map with
`kind`; descriptors travel beside it. What is sent to the supervisor must never hold up training: a report that
finds the socket full is dropped.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stepahead.pipeline import LinkTimeoutError, PeerGoneError, UsageError

from .packing import pack, unpack
from .waiting import Waitable

__all__ = ["SOCKET", "Control", "connect", "listen"]

SOCKET = "control.sock"
PACKET_LIMIT = 65536
MOST_DESCRIPTORS = 8


class Control(Waitable):
    """One end of the connection; the worker's and the supervisor's are alike."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        connection.setblocking(False)
        self.peer = peer
        self._socket = connection
        self._gone = False
        self._messages: list[tuple[dict[str, Any], list[int]]] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def gone(self) -> bool:
        return self._gone

    def refresh(self) -> None:
        """Read what has come."""
        with suppress(BlockingIOError):
            while not self._gone:
                self._read()

    def take(self, most: int | None = None) -> list[tuple[dict[str, Any], list[int]]]:
        """Return the messages that have been read since, or the first of them."""
        most = len(self._messages) if most is None else most
        messages, self._messages = self._messages[:most], self._messages[most:]
        return messages

    def receive(self, timeout: float) -> tuple[dict[str, Any], list[int]]:
        """Return the next message, and wait for it for at most `timeout` seconds."""
        self._socket.settimeout(timeout)
        try:
            while not self._messages:
                self._read()
                if self.gone:
                    raise PeerGoneError(f"cannot receive a word from {self.peer}: it is gone")
        except TimeoutError:
            raise LinkTimeoutError(f"cannot receive a word from {self.peer}: it said none for {timeout:g} s") from None
        finally:
            self._socket.setblocking(False)
        return self._messages.pop(0)

    def send(self, kind: str, /, descriptors: Sequence[int] = (), *, timeout: float = 5.0, **fields: Any) -> bool:
        """Send a message, and return whether the other end could take it within `timeout` seconds."""
        packet = pack({"kind": kind, **fields})
        self._socket.settimeout(timeout)
        try:
            socket.send_fds(self._socket, [packet], list(descriptors))
        except (TimeoutError, BlockingIOError):
            return False
        except (BrokenPipeError, ConnectionResetError):
            self._gone = True
            return False
        finally:
            with suppress(OSError):
                self._socket.setblocking(False)
        return True

    def report(self, kind: str, /, **fields: Any) -> bool:
        """Send a message if that takes no waiting."""
        return self.send(kind, timeout=0.0, **fields)

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(
                self._socket, PACKET_LIMIT, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            packet, descriptors = b"", []
        if packet:
            self._messages.append((unpack(packet), list(descriptors)))
        else:
            self._gone = True


def listen(folder: Path) -> socket.socket:
    """Return a socket in the folder on which a supervisor accepts its workers."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _short(folder) as path:
        listener.bind(path)
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def connect(folder: Path, timeout: float = 10.0) -> Control:
    """Connect to the supervisor that listens in the folder."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(timeout)
    try:
        with _short(folder) as path:
            connection.connect(path)
    except OSError as error:
        connection.close()
        raise UsageError(f"nobody supervises a run in {folder}: {error.strerror}") from error
    return Control(connection, "the supervisor")


@contextmanager
def _short(folder: Path) -> Generator[str]:
    """Yield a short path for the socket: a Unix socket's may have 107 bytes, and run folders lie deep."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
