"""The console of a run: it outlives its reader."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console

__all__ = ["Screen", "say"]


class Screen(Console):
    """A console that falls silent when nobody reads any more (`stepahead train .. | head`); the run goes on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)  # `file.py:fire` names a job

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(console: Console, line: str) -> None:
    """Print a line for people, as it is."""
    with suppress(OSError):  # a terminal may be gone, and the run goes on
        console.print(line, highlight=False, soft_wrap=True, markup=False)
