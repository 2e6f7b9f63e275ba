"""A run from beginning to end: plan, folder, workers, supervision, summary."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from stepahead.pipeline import StepaheadError, TrainingError, UsageError, WorkerLostError
from stepahead.workers import leave_failure, listen

from .baseline import baseline_from, measure_baseline
from .config import read_config, write_config
from .folder import RunFolder
from .gpus import Gpus
from .hosts import Host
from .interrupts import stop_signals
from .job import Job
from .monitor import Baseline, Monitor
from .plan import Plan, make_plan, plan_run
from .report import write_report
from .screen import Screen, say
from .showing import Showing, facts_of
from .start import start_workers, work_at
from .summary import exit_code, finite, summarize, write_summary
from .supervisor import Outcome, Supervisor
from .trace import Tracer
from .words import first_words, last_words, show_result

__all__ = [
    "RunResult",
    "end_before_it_began",
    "find_baseline",
    "launch",
    "open_folder",
    "rejoin",
    "supervise",
    "train",
]

MEASURED = ("lockstep", "gpipe", "1f1b")
"""The schedules that may be a baseline: with one group a stage, so the cut is that of the run."""
NO_BASELINE = {
    "done": "the data was at its end too soon",
    "failed": "it failed; if the run does too, it says why",
    "worker lost": "it lost a worker",
}


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    summary: Mapping[str, Any]
    exit_code: int
    words: str
    """What went wrong, for people; empty if nothing did."""
    baseline: Baseline | None = None
    tracer: Tracer | None = None
    """What was done when, in the steps that were traced."""


def train(job: Job | str, **settings: Any) -> dict[str, Any]:
    """Train a job, one process for each stage, and return the run's summary.

    Args:
        job: A Job, or the name of one as on the command line.
        settings: As in a configuration file: stages=4, lag="exact", run_dir="runs/first" ..

    Raises:
        UsageError: What is asked for cannot be done.
        WorkerLostError: A worker process died.
        TrainingError: A worker failed; what it raised is in the message.
        KeyboardInterrupt: The run was interrupted; the weights are saved.
    """
    config = read_config(flags={**settings, "job": job if isinstance(job, str) else job.name})
    plan = make_plan(config, job) if isinstance(job, Job) else plan_run(config)
    result = launch(plan, Screen(), named=isinstance(job, str))
    if result.exit_code == 130:
        raise KeyboardInterrupt
    if result.exit_code != 0:
        kinds: dict[int, type[StepaheadError]] = {2: UsageError, 3: WorkerLostError}
        raise kinds.get(result.exit_code, TrainingError)(result.words)
    return dict(result.summary)


def launch(plan: Plan, console: Console, *, named: bool = True, traced: tuple[int, int] | None = None) -> RunResult:
    """Run a plan with workers of our own.

    Args:
        named: Whether a fresh process could find the job by its name.
        traced: The first and the last step to trace; a few after the first ones, unless given.
    """
    folder = open_folder(plan)
    for line in first_words(plan, folder):
        say(console, line)
    with stop_signals() as signals:
        try:
            baseline = find_baseline(plan, folder, console, signals, named=named)
        except KeyboardInterrupt:
            return end_before_it_began(plan, folder, console)
        listener = listen(folder.path)

        def start(supervisor: Supervisor) -> None:
            start_workers(plan, folder, supervisor, named=named)

        facts = facts_of(plan, folder, baseline)
        tracer = Tracer(facts) if traced is None else Tracer(facts, first=traced[0], last=traced[1])
        return supervise(plan, folder, console, listener, start, signals, tracer)


def rejoin(run: Path, name: str) -> int:
    """Be a worker that was started fresh, and return the exit code."""
    try:
        plan = plan_run(read_config(RunFolder(run).config))
    except BaseException as error:
        leave_failure(run, name, error)
        return 1
    return work_at(plan.place(name, run), plan)


def open_folder(plan: Plan) -> RunFolder:
    """Make the run folder, with the settings in it: workers that start fresh plan from them again."""
    _earlier_baseline(plan)  # a mistake in it is found before there is a folder
    folder = RunFolder.create(plan.config.job, plan.config.run_dir)
    write_config(plan.config, folder.config)
    return folder


def supervise(
    plan: Plan,
    folder: RunFolder,
    console: Console,
    listener: socket.socket,
    start: Callable[[Supervisor], None],
    signals: socket.socket | None,
    tracer: Tracer,
    hosts: Sequence[Host] = (),
) -> RunResult:
    """Supervise a run to its end, show how it goes, and leave what came of it."""
    begun = time.monotonic()
    monitor, baseline = Monitor(tracer.facts), tracer.facts.baseline
    with Supervisor(folder, listener, plan.wiring, monitor.note, signals, hosts) as supervisor:
        start(supervisor)
        # before the view, which waits for a first word: NVIDIA's library may take its time
        gpus = Gpus(plan.devices_of_first_host)
        with Showing(monitor, folder, console, plan.config.view) as showing:
            for _ in supervisor.looks():
                for step, figures in supervisor.evaluations[len(monitor.evaluations) :]:
                    monitor.evaluated(step, finite(figures))
                monitor.expect(supervisor.expected)
                samples, moments = supervisor.samples(time.monotonic(), gpus.read()), supervisor.moments()
                showing.update(samples, moments)
                tracer.take(samples, moments)
            if supervisor.missed:
                monitor.note(f"{supervisor.missed} spans came too fast to be kept: timeline and trace have gaps")
            outcome = supervisor.outcome()
            monitor.reason = outcome.reason
        seconds = time.monotonic() - begun
        metrics = supervisor.evaluations[-1][1] if supervisor.evaluations else {}
        summary = summarize(
            plan, folder, outcome, supervisor.workers, metrics=metrics, seconds=seconds, baseline=baseline
        )
    return _conclude(folder, console, summary, outcome, tracer)


def end_before_it_began(plan: Plan, folder: RunFolder, console: Console) -> RunResult:
    """Leave what can be said of a run that was interrupted before its workers started."""
    say(console, "interrupted while the baseline was measured; nothing has been trained")
    outcome = Outcome(reason="interrupted")
    summary = summarize(plan, folder, outcome, {}, metrics={}, seconds=0.0, baseline=None)
    return _conclude(folder, console, summary, outcome, Tracer(facts_of(plan, folder, None)))


def _conclude(
    folder: RunFolder, console: Console, summary: dict[str, Any], outcome: Outcome, tracer: Tracer
) -> RunResult:
    """Leave what there is to read of a run, and say how it went."""
    try:
        write_summary(folder, summary)
    except OSError as error:
        say(console, f"{folder.summary} cannot be written: {error.strerror}")
    _leave(folder, tracer, console)
    if outcome.reason in ("done", "interrupted") and summary["wall_seconds"]:
        show_result(summary, folder.path, console)
    words = last_words(outcome, folder.path)
    return RunResult(summary, exit_code(outcome), words, tracer.facts.baseline, tracer)


def _leave(folder: RunFolder, tracer: Tracer, console: Console) -> None:
    """Leave the trace and the report; a run that is done is not to fail for them."""
    try:
        tracer.write(folder.path)
        write_report(folder.path)
    except (OSError, ArithmeticError, LookupError, ValueError) as error:
        say(console, f"no trace or no report: {type(error).__name__}: {error}")


def find_baseline(
    plan: Plan, folder: RunFolder, console: Console, signals: socket.socket | None, *, named: bool
) -> Baseline | None:
    """Return what the run is compared with, measured if need be; an interruption is a KeyboardInterrupt."""
    name = plan.config.baseline
    if name not in MEASURED or not _is_compared(plan):
        return _earlier_baseline(plan)
    if plan.is_on_several_hosts:
        say(console, "no baseline: it would be measured on this host alone; give an earlier run of --schedule lockstep")
        return None
    if isinstance(plan.job.data, Iterator):
        say(console, "no baseline: the data can be gone through only once")
        return None
    say(console, f"measuring the locked baseline ({name}) for some seconds; --baseline none does without")
    found, outcome = measure_baseline(plan, folder, partial(start_workers, named=named), signals)
    if outcome.reason == "interrupted":
        raise KeyboardInterrupt
    if found is None:
        say(console, f"no baseline: {NO_BASELINE[outcome.reason]}")
    return found


def _earlier_baseline(plan: Plan) -> Baseline | None:
    """Return the baseline that is taken from an earlier run, if it is."""
    name = plan.config.baseline
    return None if name in ("none", *MEASURED) or not _is_compared(plan) else baseline_from(name, plan.stages)


def _is_compared(plan: Plan) -> bool:
    return plan.stages > 1 and plan.signal != "locked"
