"""What people run and see.

cli         the command                     supervisor   watches a run, and ends it
job         what a user wants trained       switchboard  hands workers their ends of the links
config      settings, from file and flags   rendezvous   torchrun's variables
plan        groups to workers to devices    folder       where everything that a run leaves is
run         a run from beginning to end     summary      what came of it, as summary.json
start       forks or starts workers         progress     how far it is, on a terminal or in a file
interrupts  signals that ask to stop        lifeline     a process that dies with its parent
export      weights for the uncut model     words        what a run says to people
datasets    data for the demo, the examples, the benchmarks
environment this machine, for bug reports   doctor       a self-test of it
screen      a console that outlives its reader
job_digits  the built-in jobs
job_chars

Names are imported when they are asked for: a command that needs no torch need not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config as Config
    from .datasets import Dataset as Dataset
    from .datasets import cifar10 as cifar10
    from .datasets import digits as digits
    from .datasets import minibatches as minibatches
    from .datasets import mnist as mnist
    from .datasets import read_idx as read_idx
    from .job import Job as Job
    from .job import load_job as load_job
    from .progress import Track as Track
    from .run import train as train

_HOMES = {
    "Config": "config",
    "Dataset": "datasets",
    "Job": "job",
    "Track": "progress",
    "cifar10": "datasets",
    "digits": "datasets",
    "load_job": "job",
    "minibatches": "datasets",
    "mnist": "datasets",
    "read_idx": "datasets",
    "train": "run",
}

__all__ = [
    "Config",
    "Dataset",
    "Job",
    "Track",
    "cifar10",
    "digits",
    "load_job",
    "minibatches",
    "mnist",
    "read_idx",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
