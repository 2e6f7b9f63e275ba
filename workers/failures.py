"""Failures: a worker that fails leaves a file in its log folder, and of all the files the earliest is the cause.

kind       what failed                                              how it counts
usage      a UsageError: what was asked for cannot be done          as a cause
training   a TrainingError, or anything else that was raised        as a cause
link       a link broke under a worker: its peer was there first    only if there is nothing else
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from stepahead.pipeline import PeerEndedError, PeerGoneError, StepaheadError, UsageError

from .files import write_whole

__all__ = ["Failure", "cause_of", "failure_of", "read_failure", "write_failure"]

FILE = "failure.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a worker raised."""

    worker: str
    time: float
    """On the machine's monotonic clock, which all its processes share."""
    steps: int
    """How many steps the worker had made."""
    kind: Literal["usage", "training", "link"]
    error: str
    """The name of its type."""
    message: str
    traceback: str
    expected: bool
    """Whether stepahead raised it on purpose: then its message says all."""


def failure_of(error: BaseException, worker: str, steps: int) -> Failure:
    """Return what there is to say about an error that ends a worker."""
    kind: Literal["usage", "training", "link"] = "training"
    if isinstance(error, UsageError):
        kind = "usage"
    elif isinstance(error, (PeerGoneError, PeerEndedError)):
        kind = "link"
    return Failure(
        worker=worker,
        time=time.monotonic(),
        steps=steps,
        kind=kind,
        error=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        expected=isinstance(error, StepaheadError),
    )


def write_failure(folder: Path, failure: Failure) -> None:
    """Leave the failure in a worker's log folder."""
    write_whole(folder / FILE, json.dumps(asdict(failure), indent=1))


def read_failure(folder: Path) -> Failure | None:
    """Return the failure that a worker left in its log folder."""
    try:
        return Failure(**json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return None


def cause_of(failures: Iterable[Failure]) -> Failure | None:
    """Return the failure that the others followed from."""
    return min(failures, key=lambda failure: (failure.kind == "link", failure.time), default=None)
