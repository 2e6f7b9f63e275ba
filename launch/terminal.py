"""The terminal of a view: keys one by one, a screen of its own, and everything as it was before when the view ends.

However it ends: left, killed, stopped with Ctrl-Z and brought back, at once or from the background. Only kill -9 leaves
it to whoever started the view (`restore`).
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

__all__ = ["Terminal", "is_ours", "is_usable", "restore", "save"]

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
"""A terminal that knows these shows a frame only when all of it has come."""
SYSTEMS = {"standard": ColorSystem.STANDARD, "256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR}
KEY = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|\x1b|[\x00-\x7f]")
ARROWS = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down", b"\x1b": "escape"}


def is_usable(console: Console) -> bool:
    """Return whether a view can be had: a terminal that can move its cursor, even if we are in its background."""
    if not console.file.isatty() or console.is_dumb_terminal:
        return False
    try:
        os.tcgetpgrp(sys.stdout.fileno())
        return os.get_terminal_size(sys.stdout.fileno()).columns > 0
    except OSError:
        return False


def is_ours() -> bool:
    """Return whether we are in the foreground of the terminal, so that it is ours to write to."""
    try:
        return os.tcgetpgrp(sys.stdout.fileno()) == os.getpgrp()
    except OSError:
        return False


def save() -> list[Any] | None:
    """Return the terminal's settings; from its background those of a plain line, for a shell's own are no use."""
    try:
        settings = termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, ValueError, OSError, AttributeError):  # no terminal, or no standard input at all
        return None
    if not is_ours():
        settings[0] |= termios.ICRNL
        settings[3] |= termios.ICANON | termios.ECHO | termios.ISIG
    return settings


def restore(settings: list[Any] | None) -> None:
    """Set the terminal as it was, after a view that could not do so itself."""
    with suppress(termios.error, OSError, ValueError):  # the terminal may be gone
        if settings is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, settings)
        sys.stdout.write(LEAVE)
        sys.stdout.flush()


class Terminal:
    """A context in which the terminal belongs to a view."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.ended = False
        """Whether somebody wants the view to end."""
        self._stopping = False
        self.away = True
        """Whether we are in the background: to touch the terminal from there would stop us."""
        self._settings: list[Any] | None = None
        self._before: dict[int, Any] = {}
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handlers: dict[int, Any] = {
            signal.SIGTERM: self._end,
            signal.SIGHUP: self._end,
            signal.SIGTSTP: self._stop,
            signal.SIGWINCH: lambda *_: None,
        }

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        size = os.get_terminal_size(sys.stdout.fileno())
        return size.columns, size.lines

    def wait(self, timeout: float, *descriptors: int) -> list[str]:
        """Wait for keys, for any of the descriptors, or for the terminal to change; return the keys."""
        ours = is_ours()
        if ours and self.away:
            self._take()
        self.away = not ours
        keyboard = [] if self._settings is None or self.away else [sys.stdin.fileno()]
        ready, _, _ = select.select([*keyboard, self._wake, *descriptors], [], [], timeout)
        if self._wake in ready:
            os.read(self._wake, 512)
        if self._stopping:
            self._pause()
            return []
        return _keys(os.read(keyboard[0], 64)) if keyboard and keyboard[0] in ready else []

    def show(self, lines: Sequence[Text]) -> None:
        """Show the lines, from the top of the screen."""
        if self.away:
            return
        text = "\r\n".join(REST_OF_LINE + self.render(line) for line in lines)
        self._write(f"{BEGIN}{HOME}{text}{REST_OF_SCREEN}{END}")

    def render(self, line: Text) -> str:
        """Return a line as characters and colours."""
        system = None if self.console.no_color else SYSTEMS.get(self.console.color_system or "")
        return "".join(
            part.style.render(part.text, color_system=system) if part.style else part.text
            for part in line.render(self.console)
        )

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, handler) for number, handler in self._handlers.items()}
        self._wakeup_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        if is_ours():
            self._take()
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._waker)

    def _take(self) -> None:
        self.away = False
        self._settings = save()
        if self._settings is not None:
            tty.setcbreak(sys.stdin.fileno(), termios.TCSADRAIN)
        self._write(ENTER)

    def _give_back(self) -> None:
        if not self.away:
            restore(self._settings)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.ended = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _pause(self) -> None:
        """Give the terminal back and stop with all of our group; `wait` takes it again once we are in front."""
        self._stopping = False
        self._give_back()
        os.killpg(0, signal.SIGSTOP)
        self.away = True

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _keys(raw: bytes) -> list[str]:
    """Return the keys by name; those that send more than one byte and have no name are left out."""
    found: list[bytes] = KEY.findall(raw)
    return [ARROWS.get(key, key.decode()) for key in found if key in ARROWS or len(key) == 1]
