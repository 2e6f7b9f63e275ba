"""The command: `stepahead train`, `compare`, `profile`, `top`, `playback`, `report`, `export`, `env`, `doctor`.

Exit codes: 0 done, 1 training failed, 2 usage, 3 a worker was lost, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from .interrupts import ignore_stop_signals
from .lifeline import die_with
from .recording import FILE, RecordingError
from .terminal import is_ours, is_usable

if TYPE_CHECKING:
    from .config import Config
    from .run import RunResult

__all__ = ["main"]

PROFILED = 100
"""Steps that `profile` traces, unless --steps says how many."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read once, when torch is imported: so they are set before that."""
FLAGS: dict[str, dict[str, Any]] = {
    "stages": {"type": int, "metavar": "N", "help": "how many; one process each"},
    "cut": {"metavar": "HOW", "help": "count (equally many layers), cost (equally long), or layers: 3,6,9"},
    "schedule": {"metavar": "NAME", "help": "decoupled, lockstep, gpipe, 1f1b, interleaved-1f1b, interleaved-zb, zbv"},
    "microbatches": {"type": int, "metavar": "M", "help": "into so many a batch is cut, under the last five of those"},
    "blocks": {"type": int, "metavar": "K", "help": "put the stages into K blocks: locked inside, decoupled between"},
    "signal": {"metavar": "NAME", "help": "auto (the job's own), synthetic, locked, probe or silent"},
    "truth": {
        "metavar": "NAME",
        "help": "what is made of true gradients: auto, off, learn, replay, stash or true-up",
    },
    "truth-every": {"type": int, "metavar": "K", "help": "on every K-th batch"},
    "lag": {"metavar": "MODE", "help": "free (gradients are used when they come) or exact (reproducible)"},
    "max-lag": {"type": int, "metavar": "N", "help": "the most steps that a gradient may lag; exact: just so many"},
    "link": {"metavar": "KIND", "help": "auto, shm (shared memory), zmq (ZeroMQ) or dist (NCCL or gloo)"},
    "window": {"type": int, "metavar": "N", "help": "messages that a link holds"},
    "timeout": {"type": float, "metavar": "S", "help": "seconds that a worker waits for another one"},
    "device": {"metavar": "NAME", "help": "auto, cpu, cuda, one for each stage (cuda:0,cuda:1), or virtual"},
    "stage-ms": {"type": float, "metavar": "MS", "help": "how long a virtual stage takes for a batch"},
    "slow-stage": {"metavar": "S:X", "help": "virtual stages that take X times as long: 3:1.5,5:2"},
    "jitter": {"type": float, "metavar": "SHARE", "help": "by which virtual stages last longer or shorter each time"},
    "link-latency-ms": {"type": float, "metavar": "MS", "help": "between virtual stages"},
    "link-gbps": {"type": float, "metavar": "G", "help": "gigabits a second between virtual stages"},
    "steps": {"type": int, "metavar": "N", "help": "train on at most so many batches"},
    "epochs": {"type": int, "metavar": "N", "help": "go through the data at most so many times"},
    "evaluate-every": {"type": int, "metavar": "N", "help": "evaluate after every so many steps"},
    "seed": {"type": int, "metavar": "N", "help": "of everything that is drawn"},
    "run-dir": {"metavar": "DIR", "help": "the run folder; runs/<job>-<time> unless given"},
    "baseline": {"metavar": "NAME", "help": "lockstep, gpipe or 1f1b (measured first), none, or an earlier run"},
    "view": {"metavar": "HOW", "help": "auto, live (a dashboard on a terminal) or lines"},
    "start-method": {"metavar": "HOW", "help": "auto, fork or spawn"},
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    options = _parser().parse_args(arguments)
    for name in THREADS:
        os.environ.setdefault(name, "1")
    is_worker = "parent" in options or "RANK" in os.environ
    if is_worker:
        die_with(getattr(options, "parent", os.getppid()))  # before anything that takes time
    try:
        code = _run(options)
    except KeyboardInterrupt:  # before there was anything to end in order
        code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    if is_worker:
        os._exit(code)  # a thread of a link that comes back from gloo while the interpreter ends would abort it
    sys.exit(code)


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except RecordingError as error:
        print(f"stepahead: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(f"stepahead: no permission for {error.filename or error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"stepahead: {error}; stepahead doctor tells more about this machine", file=sys.stderr)
        return 1
    except Exception as error:
        from stepahead.pipeline import UsageError  # only now: a viewer need not wait for torch

        if not isinstance(error, UsageError):
            raise
        print(f"stepahead: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    about = "Pipeline-parallel training without backprop's locks."
    parser = argparse.ArgumentParser(prog="stepahead", description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a job, one process for each stage")
    _add_settings(train)
    train.set_defaults(run=_train)
    profile = commands.add_parser("profile", help="where every millisecond of every stage goes, and what would help")
    _add_settings(profile)
    profile.set_defaults(run=_profile)
    compare = commands.add_parser("compare", help="schedules side by side: what the lock costs on this job and machine")
    _add_settings(compare, leave_out=("schedule", "microbatches", "baseline", "view", "steps", "epochs"))
    compare.add_argument("--schedules", metavar="A,B", help="which; all unless given")
    compare.add_argument(
        "--microbatches", metavar="M", default="auto", help="auto (1, 2, 4, 8, the best), or: 4, or: 2,4"
    )
    compare.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is measured, in turn")
    compare.add_argument("--seconds", type=float, default=5.0, metavar="S", help="that a round lasts, after warming up")
    compare.add_argument("--target-loss", type=float, metavar="L", help="a round ends there; the seconds are compared")
    compare.set_defaults(run=_compare)
    top = commands.add_parser("top", help="watch a run that goes on in another terminal")
    top.add_argument("run_folder", type=Path, metavar="RUN", nargs="?", help="the newest that goes on, unless given")
    top.add_argument("--once", action="store_true", help="print how it is now, and end")
    top.set_defaults(run=_top)
    playback = commands.add_parser("playback", help="watch a run again that has been recorded")
    playback.add_argument("run_folder", type=Path, metavar="RUN", nargs="?", help="the newest one, unless given")
    playback.add_argument("--speed", type=float, default=1.0, metavar="X", help="so many times as fast")
    playback.set_defaults(run=_playback)
    report = commands.add_parser("report", help="make a run's report.html again")
    report.add_argument("run_folder", type=Path, metavar="RUN", nargs="?", help="the newest one, unless given")
    report.set_defaults(run=_report)
    export = commands.add_parser("export", help="write a run's weights for the uncut model, as safetensors")
    export.add_argument("run_folder", type=Path, metavar="RUN")
    export.add_argument("file", type=Path, metavar="OUT.safetensors")
    export.set_defaults(run=_export)
    commands.add_parser("env", help="versions and limits of this machine, for bug reports").set_defaults(run=_env)
    commands.add_parser("doctor", help="test this machine for ten seconds, with advice").set_defaults(run=_doctor)
    worker = commands.add_parser("worker")
    worker.add_argument("run_folder", type=Path)
    worker.add_argument("name")
    worker.add_argument("parent", type=int)
    worker.set_defaults(run=_worker)
    return parser


def _add_settings(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    parser.add_argument("job", metavar="JOB", help="digits, chars, file.py, file.py:function, package.module:function")
    for name, details in FLAGS.items():
        if name in leave_out:
            continue
        spellings = [f"--{name}"] if "-" not in name else [f"--{name}", f"--{name.replace('-', '_')}"]
        parser.add_argument(*spellings, **details)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, or options.KEY")
    parser.add_argument("--json", action="store_true", help="print the summary as the last line")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    flags = {name: getattr(options, name, None) for name in (key.replace("-", "_") for key in FLAGS)}
    return {**flags, "job": options.job}


def _compare(options: argparse.Namespace) -> int:
    from stepahead.pipeline import UsageError

    from .compare import AUTO, SCHEDULES, Settings, compare
    from .config import read_config
    from .job import load_job
    from .screen import Screen

    try:
        counts = AUTO if options.microbatches == "auto" else tuple(map(int, options.microbatches.split(",")))
    except ValueError:
        raise UsageError(f"microbatches is {options.microbatches!r}; say auto, a number, or several: 2,4") from None
    settings = Settings(
        schedules=tuple(name.strip() for name in options.schedules.split(",")) if options.schedules else SCHEDULES,
        microbatches=counts,
        rounds=options.rounds,
        seconds=options.seconds,
        target_loss=options.target_loss,
    )
    config = read_config(options.config, options.set, {**_settings(options), "microbatches": None})
    job = load_job(config.job, config.options, seed=config.seed)
    return compare(config, job, settings, Screen(), as_json=options.json)


def _profile(options: argparse.Namespace) -> int:
    from stepahead.pipeline import UsageError

    from .config import read_config
    from .plan import plan_run
    from .profile import profile
    from .screen import Screen

    if "RANK" in os.environ:
        raise UsageError("profile starts its own processes, and torchrun would start it for each rank; leave that out")
    config = read_config(options.config, options.set, {**_settings(options), "steps": None})
    if options.steps is not None and options.steps < 1:
        raise UsageError(f"steps is {options.steps}; it must be at least 1")
    result = profile(plan_run(config), Screen(), options.steps or PROFILED)
    _finish(result, options.json)
    return result.exit_code


def _train(options: argparse.Namespace) -> int:
    from .config import read_config
    from .plan import plan_run
    from .ranks import train_under_torchrun
    from .rendezvous import Torchrun
    from .run import launch
    from .screen import Screen

    torchrun = Torchrun.from_environment()
    flags = _settings(options)
    if torchrun and flags["stages"] is None:
        flags["stages"] = torchrun.world_size
    config: Config = read_config(options.config, options.set, flags)
    console = Screen()

    def finish(result: RunResult) -> None:
        _finish(result, options.json)

    if torchrun:
        return train_under_torchrun(torchrun, config, console, finish)
    result = launch(plan_run(config), console)
    finish(result)
    return result.exit_code


def _finish(result: RunResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.summary), flush=True)
    if result.words:
        print(f"stepahead: {result.words}", file=sys.stderr, flush=True)


def _worker(options: argparse.Namespace) -> int:
    ignore_stop_signals()
    from .run import rejoin

    return rejoin(options.run_folder, options.name)


def _top(options: argparse.Namespace) -> int:
    from .broadcast import is_broadcast, is_measured
    from .viewer import find_run, watch

    run = find_run(options.run_folder, lambda run: is_broadcast(run) or is_measured(run), "is going on")
    console = Console(emoji=False)
    return watch(run, console, once=options.once or not (is_usable(console) and is_ours()))


def _playback(options: argparse.Namespace) -> int:
    from .viewer import find_with, playback

    return playback(find_with(options.run_folder, FILE), Console(emoji=False), options.speed)


def _report(options: argparse.Namespace) -> int:
    from .report import write_report
    from .viewer import find_with

    print(write_report(find_with(options.run_folder, "summary.json")))
    return 0


def _export(options: argparse.Namespace) -> int:
    from .export import export_weights

    print(export_weights(options.run_folder, options.file))
    return 0


def _env(options: argparse.Namespace) -> int:
    from .environment import describe

    print(describe())
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    return examine()
