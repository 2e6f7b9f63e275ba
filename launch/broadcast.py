"""The broadcast: a run's state over ZeroMQ, for any number of viewers.

A Unix socket in the run folder, which only its user can enter. Each message is a whole state, so a viewer that comes
late or misses some needs nothing else. One that does not read loses messages, and never holds up the run.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import zmq

from .monitor import RunState

__all__ = ["BASELINE", "Publisher", "Subscriber", "is_broadcast", "is_measured"]

SOCKET = "telemetry.sock"
BASELINE, CONTROL = "baseline", "control.sock"
"""The folder in a run's in which its baseline is measured, and what that listens at."""
WAITING = 4
"""Messages that wait for a viewer, before it misses some."""


class Publisher:
    """The run's side; it never waits."""

    def __init__(self, run: Path) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.SNDHWM, WAITING)
        self._socket.set(zmq.LINGER, 200)
        self._run = os.open(run, os.O_PATH | os.O_DIRECTORY)
        self._socket.bind(_address(self._run))

    def send(self, state: RunState) -> None:
        """Send a state to whoever listens."""
        with suppress(zmq.ZMQError):
            self._socket.send(bytes(msgpack.packb(state.as_dict()) or b""), zmq.NOBLOCK)

    def close(self) -> None:
        self._socket.close()
        self._context.term()
        with suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=self._run)
        os.close(self._run)


class Subscriber:
    """A viewer's side."""

    def __init__(self, run: Path) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.RCVHWM, WAITING)
        self._socket.set(zmq.RECONNECT_IVL, 50)
        self._socket.subscribe(b"")
        self._run = os.open(run, os.O_PATH | os.O_DIRECTORY)
        self._socket.connect(_address(self._run))

    def fileno(self) -> int:
        return int(self._socket.get(zmq.FD))

    def newest(self) -> RunState | None:
        """Return the newest state that has come, if one has."""
        newest: Any = None
        with suppress(zmq.Again):
            while True:
                newest = self._socket.recv(zmq.NOBLOCK)
        return None if newest is None else RunState.from_dict(msgpack.unpackb(newest))

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()
        os.close(self._run)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def is_broadcast(run: Path) -> bool:
    """Return whether somebody broadcasts the run now: one that was killed leaves its socket behind."""
    return _answers(run, SOCKET, socket.SOCK_STREAM)


def is_measured(run: Path) -> bool:
    """Return whether the run's baseline is being measured; the broadcast comes after that."""
    return _answers(run / BASELINE, CONTROL, socket.SOCK_SEQPACKET)


def _answers(folder: Path, name: str, kind: socket.SocketKind) -> bool:
    """Return whether somebody listens at a socket."""
    try:
        opened = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as caller:
            return caller.connect_ex(_path(opened, name)) in (0, errno.EAGAIN)  # who is stopped takes no more callers
    finally:
        os.close(opened)


def _address(run: int) -> str:
    return f"ipc://{_path(run, SOCKET)}"


def _path(folder: int, name: str) -> str:
    """Return a short path in an open folder: a Unix socket's may have 107 bytes, and run folders lie deep."""
    return f"/proc/self/fd/{folder}/{name}"
