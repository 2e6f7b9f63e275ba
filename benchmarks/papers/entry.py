"""What an entry is: trials that are run once each, and a table that is made of what they left."""

from __future__ import annotations

import json
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from rich.box import MARKDOWN
from rich.table import Table

from stepahead.launch import Track
from stepahead.pipeline import StepReport

__all__ = [
    "ABOUT",
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

Saved = TypeVar("Saved")
ABOUT = ("trial", "seconds", "core_seconds", "torch", "python")
"""What a line of results has besides figures."""
SAVED_EVERY = 300.0
"""Seconds."""
RESULTS = Path(__file__).parent / "results"
Figures = Mapping[str, Any]
"""What a trial leaves: numbers and lists of numbers, by name."""


class Unfinished:
    """Saves how far a run has come, now and then: one that is broken off goes on from there.

    Args:
        file: Where; None saves nothing.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._what = ""
        self._before = (0.0, 0.0)
        """What earlier parts of the run took."""
        self._begun = self._saved = time.monotonic()
        self._worked = _core_seconds()

    @property
    def took(self) -> tuple[float, float]:
        """Seconds, by the clock and of cores, of this part of the run and the earlier ones."""
        seconds, cores = self._before
        return seconds + time.monotonic() - self._begun, cores + _core_seconds() - self._worked

    def load(self, what: object, begin: Callable[[], Saved]) -> Saved:
        """Return what was saved of a run with such settings, or begin."""
        self._what = repr(what)
        if self.file is not None and self.file.exists():
            what_was, before, run = pickle.loads(self.file.read_bytes())
            if what_was == self._what:
                self._before = before
                return run  # type: ignore[no-any-return]
        return begin()

    def save(self, run: object) -> None:
        """Save a run, unless that was done a short time ago."""
        if self.file is not None and time.monotonic() - self._saved > SAVED_EVERY:
            new = self.file.with_suffix(".new")
            new.write_bytes(pickle.dumps((self._what, self.took, run)))
            new.replace(self.file)
            self._saved = time.monotonic()

    def forget(self) -> None:
        """Let the run be done."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Budget:
    """How long, and on what."""

    full: bool
    """The paper's own schedule, or one that fits two cores."""
    data: Path
    unfinished: Unfinished = field(default_factory=Unfinished)
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
        unfinished = Unfinished(self.file.with_name(f"{self.file.stem}-{trial.key.replace('/', '-')}.unfinished"))
        figures = trial.run(replace(budget, unfinished=unfinished), title)
        seconds, cores = (round(each, 1) for each in unfinished.took)
        made = dict(zip(ABOUT, (trial.key, seconds, cores, torch.__version__, platform.python_version()), strict=True))
        with self.file.open("a") as file:
            file.write(json.dumps({**made, **figures}) + "\n")
        unfinished.forget()


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
