"""What an entry is: trials that are run once each, and a table that is made of what they left."""

from __future__ import annotations

import json
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from rich.box import MARKDOWN
from rich.table import Table

from stepahead.launch import Track
from stepahead.pipeline import StepReport

__all__ = [
    "Budget",
    "Entry",
    "Figures",
    "Results",
    "Trial",
    "Unfinished",
    "counted",
    "mean_of",
    "of_seeds",
    "rows_table",
]

Run = TypeVar("Run")
"""What a trial saves."""
SAVED_EVERY = 300.0
"""Seconds."""
RESULTS = Path(__file__).parent / "results"
Figures = Mapping[str, Any]
"""What a trial leaves: numbers and lists of numbers, by name."""


@dataclass(frozen=True)
class Budget:
    """How long, and on what."""

    full: bool
    """The paper's own schedule, or one that fits two cores."""
    data: Path
    unfinished: Path | None = None
    """Where a trial may save how far it is."""

    @property
    def name(self) -> str:
        return "full" if self.full else "quick"


@dataclass(frozen=True)
class Trial:
    """One run of an entry."""

    key: str
    """What it is called among them."""
    run: Callable[[Budget, str], Figures]
    """Runs it, given its title."""


@dataclass(frozen=True)
class Entry:
    """One experiment."""

    title: str
    trials: Callable[[bool], Sequence[Trial]]
    """What there is to run, in full or in short."""
    table: Callable[[Mapping[str, Figures]], Table]
    """Draws what the trials left, by their keys."""
    figure: Callable[[Mapping[str, Figures], Path], None] | None = None
    """Writes a picture of it."""


class Unfinished:
    """Saves how far a run has come, now and then: one that is broken off goes on from there.

    Args:
        file: Where; None saves nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._saved = time.monotonic()

    def load(self, begin: Callable[[], Run]) -> Run:
        """Return what was saved, or begin."""
        if self.file is None or not self.file.exists():
            return begin()
        saved: Run = pickle.loads(self.file.read_bytes())
        return saved

    def save(self, run: object) -> None:
        """Save a run, unless that was done a short time ago."""
        if self.file is not None and time.monotonic() - self._saved > SAVED_EVERY:
            new = self.file.with_suffix(".new")
            new.write_bytes(pickle.dumps(run))
            new.replace(self.file)
            self._saved = time.monotonic()


class Results:
    """What the trials of an entry have left so far: lines of a file.

    Args:
        name: The entry's.
        budget: Short and full runs have files of their own.
        folder: Where they are.
    """

    def __init__(self, name: str, budget: str, folder: Path = RESULTS) -> None:
        self.file = folder / f"{name}-{budget}.jsonl"

    def read(self) -> dict[str, Figures]:
        """Return what is there, by the trial's key."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return {line["trial"]: line for line in map(json.loads, lines)}

    def run(self, trial: Trial, budget: Budget, title: str) -> None:
        """Run a trial, and write down what it leaves."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(f"{self.file.stem}-{trial.key.replace('/', '-')}.unfinished")
        start, worked = time.monotonic(), _core_seconds()
        figures = trial.run(replace(budget, unfinished=unfinished), title)
        took = {
            "seconds": round(time.monotonic() - start, 1),
            "core_seconds": round(_core_seconds() - worked, 1),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        with self.file.open("a") as file:
            file.write(json.dumps({"trial": trial.key, **figures, **took}) + "\n")
        unfinished.unlink(missing_ok=True)


def _core_seconds() -> float:
    """Return what this process and those that it waited for had of the cores."""
    return sum(os.times()[:4])


def counted(steps: int, title: str) -> Iterator[int]:
    """Count steps, and show how far it is."""
    reports = (StepReport(step, 1, float("nan")) for step in range(steps))
    for report in Track(reports, total=steps, title=title, every_seconds=60):
        yield report.step


def rows_table(
    heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], results: Mapping[str, Figures], figure: str
) -> Table:
    """Return a table with a column for each method: the mean of a figure over seeds, each seed, the paper's beside.

    A row is its name and a cell for each column, "PREFIX|PAPER": the trials whose keys begin with PREFIX.
    """
    drawn = Table(*heads, box=MARKDOWN)
    for name, cells in rows:
        drawn.add_row(name, *(_cell(cell, results, figure) for cell in cells))
    return drawn


def of_seeds(results: Mapping[str, Figures], key: str) -> list[Figures]:
    """Return what the trials of a key left, seed by seed."""
    return [line for name, line in results.items() if name.startswith(f"{key}, seed ")]


def mean_of(values: Sequence[float]) -> str:
    """Return the mean, and between which values it lies if there are several."""
    spread = f" [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"


def _cell(cell: str, results: Mapping[str, Figures], figure: str) -> str:
    prefix, _, paper = cell.partition("|")
    found = [line[figure] for line in of_seeds(results, prefix)]
    return (mean_of(found) if found else "-") + (f" (paper {paper})" if paper else "")
