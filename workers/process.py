"""The process around a worker: it takes its cores, connects, works, and says how it ended.

Each worker has a name: its stage's number, or "data" for the feed. Its log folder holds what it printed, and what it
raised. A worker ignores Ctrl-C: the launcher decides, and tells it over the control connection.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from stepahead.pipeline import UsageError

from .control import connect
from .ends import stage_title
from .failures import failure_of, write_failure
from .heap import keep_freed_memory
from .place import Place, log_folder
from .post import Post

__all__ = ["leave_failure", "run_worker"]


def run_worker(place: Place, work: Callable[[Post], None]) -> int:
    """Settle down in this process, work, and return the exit code: 0, or 1 with the failure left in the logs."""
    post: Post | None = None
    folder = log_folder(place.run, place.name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _settle(place, folder)
        post = Post(place, connect(place.run))
        signal.signal(signal.SIGCONT, post.resume)
        work(post)
    except BaseException as error:  # SystemExit in a user's code is a failure too
        leave_failure(place.run, place.name, error, post.progress.steps if post else 0)
        if post is not None:  # this process may live on: torchrun's rank 0 waits for the supervisor
            post.control.send("failed", timeout=1.0)
            post.leave()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def leave_failure(run: Path, name: str, error: BaseException, steps: int = 0) -> None:
    """Leave what ends a worker in its log folder, and print it."""
    failure = failure_of(error, name, steps)
    with suppress(FileNotFoundError):  # on a further host the run's folder goes when its outpost does
        folder = log_folder(run, name)
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        write_failure(folder, failure)
    print(failure.message if failure.kind == "link" else failure.traceback, file=sys.stderr)


def _settle(place: Place, folder: Path) -> None:
    if not place.torchrun:
        _redirect(folder)
    faulthandler.enable()
    keep_freed_memory()
    if place.cores:
        try:
            os.sched_setaffinity(0, place.cores)
        except OSError as error:
            who = stage_title(place.name)
            raise UsageError(f"{who} cannot run on cores {place.cores}: {error.strerror}") from error
    torch.set_num_threads(1)  # a pool of threads that the parent had does not survive a fork


def _redirect(folder: Path) -> None:
    """Send what this process prints to files; what it reads is empty."""
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor, path, flags in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, folder / "stdout.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, folder / "stderr.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        file = os.open(path, flags, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
