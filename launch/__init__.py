"""What people run and see.

running                                     watching
cli         the command                     monitor     folds samples into the state that is shown
job         what a user wants trained       showing     live view or lines, while it goes on
config      settings, from file and flags   dashboard   draws a state as text; gantt its last steps
plan        groups to workers to devices    viewer      shows it on a terminal, and obeys keys
run         a run from beginning to end     terminal    keys, a screen of its own, all as it was before
start       forks or starts workers         broadcast   states over ZeroMQ, for any number of viewers
supervisor  watches a run, and ends it      recording   telemetry.jsonl, written and played again
watched     one worker, as it sees it
switchboard hands workers their link ends   baseline    what the lock costs, measured first
matchmaker  says who listens where          profile     where every millisecond goes; advice
rendezvous  torchrun's variables            advice      from a profile to what to change
ranks       a run under torchrun            causes      what idle time is idle for
hosts       further ones, from here         gpus        how busy and how hot
virtual     what virtual stages take        compare     schedules side by side; comparison has
trial       a plan run for some seconds                 the figures, verdict the words, and
ceiling     stages with nothing between                 compare_table and compare_page show it
outpost     on each of them; uplink         environment this machine, for bug reports
            is the line between             doctor      a self-test of it
lifeline    a process that dies with another trace      trace.json.gz, for Perfetto
interrupts  signals that ask to stop        report      report.html; page and charts are its parts
folder      where everything that a run     lines       how far a run is, in plain lines
            leaves is                       progress    the same for one process, with a bar
summary     what came of it                 screen      a console that outlives its reader
words       what a run says to people       export      weights for the uncut model
job_digits, job_chars   the built-in jobs   datasets    data for demo and examples
sequences   copying, texts, in windows      two_clocks  two networks at two rates
sketch      draws a model that is a graph

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
    from .sequences import Copying as Copying
    from .sequences import Curriculum as Curriculum
    from .sequences import Text as Text
    from .sequences import copying as copying
    from .sequences import read_text as read_text
    from .sequences import streams as streams

_HOMES = {
    "Config": "config",
    "Copying": "sequences",
    "Curriculum": "sequences",
    "Dataset": "datasets",
    "Job": "job",
    "Text": "sequences",
    "Track": "progress",
    "cifar10": "datasets",
    "copying": "sequences",
    "digits": "datasets",
    "load_job": "job",
    "minibatches": "datasets",
    "mnist": "datasets",
    "read_idx": "datasets",
    "read_text": "sequences",
    "streams": "sequences",
    "train": "run",
}

__all__ = [
    "Config",
    "Copying",
    "Curriculum",
    "Dataset",
    "Job",
    "Text",
    "Track",
    "cifar10",
    "copying",
    "digits",
    "load_job",
    "minibatches",
    "mnist",
    "read_idx",
    "read_text",
    "streams",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
