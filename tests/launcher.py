"""The command in a process of its own, forked from the tests so that torch is there already."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from stepahead.launch.cli import main

FAULTY = Path(__file__).parent / "faulty.py"


class Launched:
    """A command that runs in a session of its own, and what it prints."""

    def __init__(self, pid: int, output: TextIO) -> None:
        self.pid = pid
        self.output = output

    def wait(self, seconds: float = 30.0) -> tuple[int, str]:
        """Wait for its end, and return its exit code and all that it printed and was not read yet."""
        assert gone(self.pid, seconds), f"still there after {seconds} s: {self.pid}"
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), self.output.read()

    def read_until(self, words: str) -> str:
        """Return the first line that it prints from now on with these words in it."""
        for line in self.output:
            if words in line:
                return line
        raise AssertionError(f"it never said {words!r}")

    def others(self) -> list[int]:
        """Return who else is in its session: its workers."""
        return [pid for pid in session(self.pid) if pid != self.pid]


def fork(how: Callable[[], Any] = os.fork) -> Any:
    """Fork; that torch has threads by then, of which newer Pythons warn, does not matter to the children here.

    The children collect nothing of what earlier tests left: a gloo group cannot end where its threads are not.
    """
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        forked = how()
    if os.getpid() != parent:  # what a fork returns differs
        gc.freeze()
    return forked


@contextmanager
def launched(arguments: Sequence[str], prepare: Callable[[], None] = lambda: None) -> Generator[Launched]:
    """Run the command, and measure no baseline unless it is asked for; kill its whole session in the end."""
    if arguments[0] == "train" and "--baseline" not in arguments:
        arguments = [*arguments, "--baseline", "none"]
    reading, writing = os.pipe()
    pid = fork()
    if pid == 0:
        _become_command(arguments, prepare, writing)
    os.close(writing)
    with open(reading) as output:
        command = Launched(pid, output)
        try:
            yield command
        finally:
            for member in session(pid):
                os.kill(member, signal.SIGKILL)


def run(arguments: Sequence[str], seconds: float = 50.0, prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Run the command to its end, and return its exit code and what it printed."""
    with launched(arguments, prepare) as command:
        text = command.output.read()
        return command.wait(seconds)[0], text


def obey_permissions() -> None:
    """Give up what lets root pass by permissions."""
    version, this_process, nothing = 0x20080522, 0, [0] * 6
    header = (ctypes.c_uint32 * 2)(version, this_process)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)(*nothing)) == 0


def faulty(run_dir: Path, act: str, stage: int = 0, step: int = 5, *more: str) -> list[str]:
    """Return the command's arguments for a run with a fault in it."""
    options = {"act": f'"{act}"', "stage": stage, "step": step, "note": f'"{run_dir}.note"'}
    settings = [part for name, value in options.items() for part in ("--set", f"options.{name}={value}")]
    return ["train", str(FAULTY), "--run-dir", str(run_dir), *settings, *more]


def note(run_dir: Path) -> tuple[float, int]:
    """Return when the fault happened, on the monotonic clock, and to whom."""
    when, who = Path(f"{run_dir}.note").read_text().split()
    return float(when), int(who)


def session(leader: int) -> list[int]:
    """Return the processes of a session that still live."""
    members: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            members.append(int(folder.name))
    return members


def gone(pid: int, seconds: float) -> bool:
    """Return whether a process ends within so many seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], max(seconds, 0.0))[0])
    finally:
        os.close(descriptor)


def all_gone(pids: Sequence[int], deadline: float) -> bool:
    """Return whether all processes have ended by a time of the monotonic clock."""
    return all(gone(pid, deadline - time.monotonic()) for pid in pids)


def _become_command(arguments: Sequence[str], prepare: Callable[[], None], output: int) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        import sys

        sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.closerange(3, 256)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
