"""Signals that ask to stop, as bytes on a socket: so they wake whoever waits for several things at once."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["ASK_TO_STOP", "ignore_stop_signals", "stop_signals"]

ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ignore_stop_signals() -> None:
    """Ignore them here: another process judges what to do."""
    signal.set_wakeup_fd(-1)
    for number in ASK_TO_STOP:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals() -> Generator[socket.socket | None]:
    """Yield a socket that gets a byte for each signal that asks to stop; None outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    caught = [number for number in ASK_TO_STOP if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in caught}
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()
