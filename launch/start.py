"""Starting workers: forked from this warm process, or fresh, where CUDA must not be inherited."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import torch
from torch import nn
from torch.optim import SGD

from stepahead.pipeline import UsageError
from stepahead.workers import DATA, Place, feed_pipeline, run_stage, run_worker

from .folder import RunFolder
from .interrupts import ASK_TO_STOP, ignore_stop_signals
from .lifeline import die_with, hold_children
from .plan import Plan
from .supervisor import Supervisor

__all__ = ["fork", "start_fresh", "start_workers", "work_at"]


def start_workers(plan: Plan, folder: RunFolder, supervisor: Supervisor, *, named: bool) -> None:
    """Start a process for the data and for each stage.

    Args:
        named: Whether a fresh process could find the job by its name.
    """
    fresh = start_fresh(plan, named=named)
    if not fresh:
        _warm_up()
    for name in plan.names:
        place = plan.place(name, folder.path)
        pid = _start(place) if fresh else fork(partial(work_at, place, plan))
        supervisor.watch(name, pid, ours=True)


def start_fresh(plan: Plan, *, named: bool) -> bool:
    """Return whether workers must be processes of their own from the beginning."""
    on_gpu = any(device.startswith("cuda") for device in plan.devices)
    method = plan.config.start_method
    if method == "auto":
        method = "spawn" if on_gpu and named else "fork"
    if method == "spawn" and not named:
        raise UsageError("a fresh process cannot find a job that is an object; give train() the job's file or module")
    if method == "fork" and on_gpu and torch.cuda.is_initialized():
        raise UsageError("this process has used CUDA, which forked workers could not; give train() the job's file")
    return method == "spawn"


def work_at(place: Place, plan: Plan) -> int:
    """Be the worker of a place, in this process, and return its exit code."""
    hold_children()
    if place.name == DATA:
        return run_worker(place, partial(feed_pipeline, plan.feed()))
    return run_worker(place, partial(run_stage, plan.work(place.stage)))


def fork(work: Callable[[], int], *, tied: bool = True) -> int:
    """Run `work` in a child process, which ends with what it returns, and dies with this one if `tied`.

    Signals that ask to stop are for this process to judge; the child ignores them from its first moment. What is
    garbage here stays uncollected there: a gloo group, say, cannot end where its threads are not.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent, before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, ASK_TO_STOP)
    with warnings.catch_warnings():  # the threads that a user's process may have are not needed in the child
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        gc.freeze()
        if tied:
            die_with(parent)
        ignore_stop_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid == 0:
        _end_with(work)
    return pid


def _warm_up() -> None:
    """Let torch import what it imports late, a second's worth with the first optimizer, once and not in each child."""
    SGD([nn.Parameter(torch.zeros(1))], lr=0.0)


def _end_with(work: Callable[[], int]) -> NoReturn:
    """Work, and end this process without running what its parent registered for its own end."""
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _start(place: Place) -> int:
    command = [sys.executable, "-m", "stepahead.launch", "worker", str(place.run), place.name, str(os.getpid())]
    silence = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=silence)
