"""`stepahead compare`: schedules side by side, in turn and repeated, on the same job, data and seed."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from stepahead.pipeline import (
    LOCKED,
    MICROBATCHED,
    USEFUL,
    LayerCost,
    StepaheadError,
    TrainingError,
    UsageError,
    check_microbatches,
    did_you_mean,
)

from .ceiling import ceiling
from .compare_page import write_page
from .compare_table import LEAST_WIDTHS, table
from .comparison import CEILING, DECOUPLED, LATE, SINGLE, Comparison, Row
from .config import Config, write_config
from .cutting import costs_of, layers_in
from .environment import machine
from .folder import RunFolder
from .interrupts import stop_signals
from .job import Job
from .plan import Plan, make_plan
from .screen import say
from .start import start_workers
from .summary import versions
from .supervisor import Outcome
from .trial import Limits, run_trial
from .verdict import verdict

__all__ = ["AUTO", "SCHEDULES", "Settings", "compare"]

SCHEDULES = (SINGLE, CEILING, *LOCKED, *LATE, DECOUPLED)
"""All that can be compared, in the order in which they are shown."""
AUTO = (1, 2, 4, 8)
"""Numbers of micro-batches that are tried; each schedule keeps its best."""
SHORT = 0.3
"""Of the seconds of a round, what a number of micro-batches is tried for."""
LATENESS = "this machine is too slow for these virtual stages"
KEPT = 0.93
"""Of the pace of virtual stages, below which a note is due."""
LEAST_SECONDS, MOST_SECONDS = 0.5, 1e6
"""Workers are looked at four times a second: less shows nothing."""
PATIENCE = 8.0
"""A round may take so many times its seconds until it has its least steps."""
FILE = "compare.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is compared, and how."""

    schedules: tuple[str, ...] = SCHEDULES
    microbatches: tuple[int, ...] = AUTO
    """Those to choose from."""
    rounds: int = 3
    seconds: float = 5.0
    target_loss: float | None = None

    def __post_init__(self) -> None:
        if not self.schedules:
            raise UsageError("schedules names none; say which: --schedules lockstep,decoupled")
        if not set(self.schedules) & set(SCHEDULES):
            raise UsageError(_unknown(self.schedules[0]))
        if self.target_loss is not None and not math.isfinite(self.target_loss):
            raise UsageError(f"target_loss is {self.target_loss}; it must be a number")
        if self.rounds < 1:
            raise UsageError(f"rounds is {self.rounds}; it must be at least 1")
        if not self.microbatches or min(self.microbatches) < 1:
            raise UsageError("microbatches must be at least 1: auto, a number, or several: 2,4")
        if len(set(self.schedules)) < len(self.schedules):
            raise UsageError(f"schedules names one twice: {', '.join(self.schedules)}")
        if not LEAST_SECONDS <= self.seconds < MOST_SECONDS:
            raise UsageError(f"seconds is {self.seconds}; it must be from {LEAST_SECONDS} to {MOST_SECONDS:,.0f}")


def _unknown(name: str) -> str:
    return f"there is no schedule {name!r}; {did_you_mean(name, SCHEDULES)}"


def compare(config: Config, job: Job, settings: Settings, console: Console, *, as_json: bool = False) -> int:
    """Measure all schedules, show what came of it, leave it in a folder, and return the exit code."""
    contest = Contest(config, job, settings)
    folder = RunFolder.create(f"{Path(config.job.partition(':')[0]).stem or job.name}-compare", config.run_dir)
    write_config(config, folder.config)
    say(console, f"{contest.title}; folder: {folder.path}")
    interrupted = False
    try:
        with stop_signals() as signals, _progress(console, contest.rounds_to_go) as advance:
            contest.run(folder, signals, advance)
    except KeyboardInterrupt:
        interrupted = True
        contest.notes.append("interrupted: what was not measured by then is not there")
    found = contest.found()
    words = verdict(found)
    console.print(table(found, console.width))
    for row in found.rows:
        if row.error is not None:
            say(console, f"{row.name}: {row.error}")
    for note in found.notes:
        say(console, f"note: {note}")
    for sentence in words:
        say(console, f"- {sentence}")
    if console.width < max(LEAST_WIDTHS.values()):
        say(console, "columns that do not fit are in the report")
    made = found.as_json(words)
    (folder.path / FILE).write_text(json.dumps(made, indent=1) + "\n")
    page = write_page(folder.path, made)
    say(console, f"{folder.path / FILE}; {page}")
    if as_json:
        print(json.dumps(made), flush=True)
    if interrupted:
        return 130
    return 0 if any(row.rates for row in found.rows) else 1


@dataclass(slots=True)
class Contest:
    """Runs the schedules of a comparison in turn."""

    config: Config
    job: Job
    settings: Settings
    rows: list[Row] = field(default_factory=list[Row])
    notes: list[str] = field(default_factory=list[str])
    _plans: dict[str, Plan] = field(default_factory=dict[str, Plan])

    def __post_init__(self) -> None:
        if "RANK" in os.environ:
            raise UsageError(
                "compare starts its own processes, and torchrun would start it for each rank; leave that out"
            )
        if self.config.truth in LATE or self.config.signal == "locked":
            raise UsageError("compare has rows of their own for that: --schedules stash,replay,lockstep")
        if isinstance(self.job.data, Iterator):
            raise UsageError("compare goes through the data again and again; give data that can be: a list, a loader")
        decoupled = replace(self.config, schedule=DECOUPLED, microbatches=None, baseline="none")
        if decoupled.cut == "cost":  # once, so that all are cut by the same figures, each as suits it
            self._costs = costs_of(decoupled, self.job, layers_in(self.job))
        self._base = self._planned(decoupled)
        if self._base.stages < 2:
            raise UsageError("compare needs a pipeline; give at least 2 stages: --stages 2")
        self._batch_rows = _rows_of(self.job)
        self.notes += self._base.notes
        if self.config.blocks is not None:
            self.notes.append(f"decoupled has its stages in {self.config.blocks} blocks, locked inside of each")
        self.rows = [
            Row(schedule=name, error=None if name in SCHEDULES else _unknown(name)) for name in self.settings.schedules
        ]

    _costs: list[LayerCost] | None = field(init=False, default=None)
    _base: Plan = field(init=False)
    _batch_rows: int = field(init=False)

    @property
    def title(self) -> str:
        settings, plan = self.settings, self._base
        kind = f"virtual, {plan.config.stage_ms:g} ms each" if plan.is_virtual else ", ".join(sorted(set(plan.devices)))
        return (
            f"{plan.config.job}: {len(self.rows)} schedule{'s' * (len(self.rows) > 1)}, {plan.stages} stages ({kind}), "
            f"{settings.rounds} round{'s' * (settings.rounds > 1)} of {settings.seconds:g} s"
        )

    @property
    def rounds_to_go(self) -> int:
        return len(self.rows) * self.settings.rounds

    def run(self, folder: RunFolder, signals: socket.socket | None, advance: Callable[[str], None]) -> None:
        """Run all of them, round after round; what fails is left out from then on."""
        for number in range(self.settings.rounds):
            for row in self.rows:
                advance(f"{row.name}, round {number + 1} of {self.settings.rounds}")
                if row.error is None:
                    try:
                        self._measure(row, folder, signals)
                    except (StepaheadError, OSError) as error:
                        row.error = str(error)
        advance("")

    def found(self) -> Comparison:
        return Comparison(
            job=self._base.config.job,
            stages=self._base.stages,
            virtual=self._base.is_virtual,
            rows=self.rows,
            target_loss=self.settings.target_loss,
            machine=machine(),
            versions=versions(),
            notes=[*self.notes, *self._cuts()],
        )

    def _cuts(self) -> list[str]:
        """Say how each was cut where cost decides: a schedule that does more in some stages has fewer layers there."""
        if self._costs is None:
            return []
        cuts = [f"{row.schedule} {'+'.join(map(str, row.cut))}" for row in self.rows if row.cut]
        return [f"layers of each group, cut by cost: {', '.join(cuts)}"] if cuts else []

    def _measure(self, row: Row, folder: RunFolder, signals: socket.socket | None) -> None:
        plan = self._plans.get(row.schedule)
        if plan is None:
            plan = self._plans[row.schedule] = self._plan(row, folder, signals)
            row.cut = plan.cut
        if row.schedule == CEILING:
            row.rates.append(ceiling(plan, self.settings.seconds))
            self._note_lateness(row.rates[-1])
            return
        limits = Limits(
            seconds=self.settings.seconds,
            most_seconds=max(60.0, PATIENCE * self.settings.seconds),
            target_loss=self.settings.target_loss,
        )
        self._run_once(row, plan, folder, signals, limits)

    def _note_lateness(self, rate: float) -> None:
        """Take note if virtual stages cannot keep their times on this machine."""
        if not self._base.is_virtual or any(LATENESS in note for note in self.notes):
            return
        slowest = max(sum(pace.seconds[part] for part in USEFUL) for pace in self._paces())
        share = rate * slowest / self._batch_rows
        if share < KEPT:
            self.notes.append(f"{LATENESS} ({share:.0%} of their pace): take a longer --stage-ms, or a smaller model")

    def _run_once(self, row: Row, plan: Plan, folder: RunFolder, signals: socket.socket | None, limits: Limits) -> None:
        """Add what a round of a schedule shows to its row."""
        place = RunFolder.create(plan.config.job, str(folder.path / "trial"))
        trial = run_trial(plan, place, partial(start_workers, named=self._is_named), signals, limits)
        if trial.outcome.reason == "interrupted":
            raise KeyboardInterrupt
        if not trial.is_good:
            raise TrainingError(_what_went_wrong(trial.outcome))
        stages = trial.state.stages
        row.rates.append(trial.state.samples_per_second)
        row.useful = [stage.useful or 0.0 for stage in stages]
        row.tax = [stage.tax or 0.0 for stage in stages]
        row.idle = [stage.idle for stage in stages]
        row.curves.append(trial.curve)
        summaries = [summary for summary in trial.summaries if summary is not None]
        row.peak_activation_bytes = [summary["peak_activation_bytes"] for summary in summaries]
        steps = max(summaries[-1]["samples"] / self._batch_rows, 1.0)
        row.bytes_per_step = sum(summary["bytes_sent"] for summary in summaries) / steps
        known = [summary["contention"] for summary in summaries if summary["contention"] is not None]
        row.contention = min([*known, *([] if row.contention is None else [row.contention])], default=None)

    def _plan(self, row: Row, folder: RunFolder, signals: socket.socket | None) -> Plan:
        """Return the plan of a schedule, after finding its best number of micro-batches."""
        if row.schedule not in MICROBATCHED:
            return self._planned(self._settings_of(row.schedule))
        plans = self._fitting_plans(row.schedule)
        if len(plans) > 1:
            for count, plan in plans.items():
                tried = Row(schedule=row.schedule, microbatches=count)
                try:
                    self._run_once(tried, plan, folder, signals, _for_a_try(self.settings.seconds))
                except TrainingError as error:  # too little memory for one, it may do with more
                    row.error = str(error)
                else:
                    row.tried[count] = tried.rates[0]
            if not row.tried:
                raise TrainingError(row.error or "")
            row.error = None
        row.microbatches = max(plans, key=lambda count: row.tried.get(count, 0.0))
        return plans[row.microbatches]

    def _planned(self, config: Config) -> Plan:
        return make_plan(config, self.job, costs=self._costs)

    def _fitting_plans(self, schedule: str) -> dict[int, Plan]:
        """Return plans for the numbers of micro-batches that schedule and batch can do with."""
        plans: dict[int, Plan] = {}
        refused: UsageError | None = None
        for count in self.settings.microbatches:
            try:
                check_microbatches(schedule, self._base.stages, count)
                plans[count] = self._planned(replace(self._settings_of(schedule), microbatches=count))
            except UsageError as error:
                refused = error
        if not plans:
            assert refused is not None, "there is at least one number to choose from"
            raise refused
        return plans

    def _settings_of(self, schedule: str) -> Config:
        """Return the settings under which a schedule is run."""
        base = replace(self._base.config, cut=self.config.cut)
        if schedule == CEILING:  # it has no predictor to pay for
            return self._settings_of("lockstep")
        if schedule in LOCKED:
            return replace(base.without_decoupling(), schedule=schedule)
        if schedule in LATE:
            return replace(base.without_decoupling(), truth=schedule)
        if schedule == SINGLE:
            return self._alone(base)
        return base

    def _alone(self, base: Config) -> Config:
        """Return the settings of one process that has all layers."""
        alone = replace(base.without_decoupling(), schedule="lockstep", stages=1, cut="count")
        if not self._base.is_virtual:
            return replace(alone, device=self._base.devices[0])
        total = sum(sum(pace.seconds[part] for part in USEFUL) for pace in self._paces())
        return replace(alone, stage_ms=total * 1e3, slow_stage=None, link_latency_ms=0.0, link_gbps=None)

    def _paces(self) -> list[Any]:
        """Return what each virtual stage takes."""
        found = [self._base.work(stage).pace for stage in range(self._base.stages)]
        return [
            replace(pace, seconds={part: seconds * pace.slow for part, seconds in pace.seconds.items()})
            for pace in found
            if pace is not None
        ]

    @property
    def _is_named(self) -> bool:
        """Whether a fresh process could find the job by its name."""
        return bool(self.config.job)


def _for_a_try(seconds: float) -> Limits:
    """Return for how long a number of micro-batches is tried."""
    return Limits(seconds=max(SHORT * seconds, LEAST_SECONDS))


def _rows_of(job: Job) -> int:
    """Return the length of the first batch."""
    try:
        return len(job.example[0])
    except Exception as error:
        raise UsageError(f"the data gives no first batch: {type(error).__name__}: {error}") from error


def _what_went_wrong(outcome: Outcome) -> str:
    failure = outcome.failure
    if failure is None:
        lost = outcome.reason == "worker lost"
        return "a worker was lost" if lost else "it made too few steps in the time that it had: give more --seconds"
    return failure.message if failure.kind == "usage" else f"{failure.error}: {failure.message}".splitlines()[0]


@contextmanager
def _progress(console: Console, total: int) -> Generator[Callable[[str], None]]:
    """Yield what is called with each thing that begins: a bar on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield lambda what: say(console, what) if what else None
        return
    columns = (BarColumn(30), TextColumn("{task.description}"), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True) as progress:
        task, begun = progress.add_task("", total=total), [False]

        def advance(what: str) -> None:
            progress.update(task, description=what, advance=int(begun[0]))
            begun[0] = True

        yield advance
