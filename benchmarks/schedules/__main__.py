"""Schedules beside each other, the figures of the README: each from one `stepahead compare`.

    python -m benchmarks.schedules virtual-4 virtual-8 ..      one or several cases
    python -m benchmarks.schedules list                         what there is
    python -m benchmarks.schedules table                        what was measured

A case's compare.json is kept beside this file; the table is made of those.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import LinearRegression, linear_regression, mean, median
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
OUT = HERE / "results"
JOBS = "benchmarks/schedules/jobs.py"
MEGA = 1e6
SETTLED = 10.0
"""Seconds after which a loss falls about as a line over the logarithm of time."""
PIPELINES = "ceiling,lockstep,gpipe,1f1b,interleaved-1f1b,interleaved-zb,zbv,replay,stash,decoupled"
"""All but one process alone, which takes as long as all virtual stages together."""


@dataclass(frozen=True)
class Case:
    """One comparison."""

    job: str
    flags: list[str] = field(default_factory=list[str])
    schedules: str = ""
    microbatches: str = "auto"
    rounds: int = 3
    seconds: float = 4.0
    data: str = ""
    """The folder below --data that the job reads, if it reads one."""

    def command(self, data: Path | None, run: Path) -> list[str]:
        command = [sys.executable, "-m", "stepahead.launch", "compare", self.job, *self.flags, "--run-dir", str(run)]
        command += ["--microbatches", self.microbatches, "--rounds", str(self.rounds), "--seconds", f"{self.seconds:g}"]
        if self.schedules:
            command += ["--schedules", self.schedules]
        if self.data and data is not None:
            command += ["--set", f"options.data={data / self.data}"]
        return command


def _size(width: int, batch: int) -> list[str]:
    return ["--set", f"options.width={width}", "--set", f"options.batch={batch}"]


VIRTUAL = ["--device", "virtual", "--stage-ms", "240", *_size(384, 256)]


def _virtual(stages: int, *flags: str, schedules: str = PIPELINES, rounds: int = 1) -> Case:
    depth = ["--set", f"options.depth={4 * stages}", "--stages", str(stages), "--truth", "off"]
    seconds = 2.0 * max(stages, 8)  # the first steps are slower
    return Case(f"{JOBS}:mlp", [*VIRTUAL, *depth, *flags], schedules, "8", rounds, seconds)


def _large(stages: int) -> Case:
    beside = "ceiling,lockstep" if stages < 16 else "ceiling"  # lockstep of sixteen takes four seconds a step
    return _virtual(stages, *_size(*LARGE[stages]), *SELDOM, schedules=f"{beside},decoupled")


def _four(milliseconds: int) -> list[str]:
    return ["--stages", "4", "--device", "virtual", "--stage-ms", str(milliseconds)]


def _real(job: str, *flags: str, **more: Any) -> Case:
    return Case(job, ["--stages", "2", "--device", "cpu", *flags], **more)


MLP, CNN, GPT = (f"{JOBS}:{name}" for name in ("mlp", "cnn", "gpt"))
NARROW, WIDE = _size(64, 64), _size(1024, 512)
ALL_ROWS = ["--set", "options.every=1", "--set", "options.parts=1"]
"""A predictor that learns on all rows of every batch whose truth comes."""
SELDOM = ["--set", "options.every=16"]
SPIN = ["--set", "spin_us=2500"]
"""For so long workers look before they sleep, so that nobody need wake them."""
LARGE = {2: (1024, 512), 4: (768, 512), 8: (640, 512), 16: (768, 128)}
"""By the number of stages: width and batch with which a guess is a small part of a stage, and two cores suffice."""
SMALL = ["--set", "options.batch=32"]
SLOW = ["--link-latency-ms", "50"]
MUON = ["--set", "options.optimizer=muon"]
SLOWER_MUON = [*MUON, "--set", "options.muon_rate=1.5e-3"]
WHOLE = ["--set", "options.predictor=whole"]
CHEAPER = ["--set", "options.predictor=cheaper"]
BY_COST = ["--cut", "cost"]
ONE_GUESS = ["--truth", "off", *BY_COST, *SMALL, *SLOWER_MUON, *WHOLE]
"""Cut by cost it is made early, where it is good: behind the first convolution."""
FOUR = _four(240)
FAR = [*FOUR, *SLOW]
EACH_TRUE = ["--truth", "true-up", "--truth-every", "1"]
TRUE = [*BY_COST, *EACH_TRUE]
GRAPHS = ["--set", "truth_keep=graph"]
HALF_TRUE = ["--truth", "true-up", "--truth-every", "2"]
FOURTH_TRUE = ["--truth-every", "4"]
LOWER_ABOVE = ["--set", "truth_full_rate_lag=2"]
"""Of four stages the first learns at a third of the rate, the second at half."""
QUICK_FOUR = [*_four(60), "--cut", "2,3,4"]
"""For the CNN, whose batches of 32 are soon done."""
CASES: dict[str, Case] = {
    **{f"virtual-{stages}": _virtual(stages) for stages in (2, 4, 8)},
    **{f"virtual-{stages}-large": _large(stages) for stages in LARGE},
    **{f"idle-{stages}": _virtual(stages, *NARROW, schedules="gpipe,1f1b", rounds=3) for stages in (4, 8)},
    "virtual-4-slow": _virtual(4, *SLOW),
    "virtual-8-straggler": _virtual(8, "--slow-stage", "3:1.5", "--jitter", "0.2"),
    "mlp-512": _real(MLP, *SELDOM, "--truth", "off"),
    "mlp-512-ceiling": _real(MLP, *SELDOM, *SPIN, "--truth", "off", schedules="ceiling,decoupled", rounds=25),
    "mlp-512-truth": _real(MLP, "--truth", "true-up", schedules="ceiling,lockstep,1f1b,zbv,replay,stash,decoupled"),
    "mlp-1024": _real(MLP, *WIDE, "--truth", "off"),
    "mlp-1024-truth": _real(
        MLP, *WIDE, "--truth", "true-up", schedules="ceiling,lockstep,1f1b,zbv,replay,stash,decoupled"
    ),
    "cnn": _real(CNN, *CHEAPER, "--truth", "off", *BY_COST),
    "gpt": _real(GPT, "--truth", "off"),
    "gpt-truth": _real("chars", schedules="ceiling,lockstep,1f1b,zbv,replay,stash,decoupled"),
    "gpt-to-loss": _real("chars", "--truth-every", "4", rounds=1, seconds=60.0),
    "gpt-to-loss-softmax": _real(
        GPT,
        *ALL_ROWS,
        *BY_COST,
        *HALF_TRUE,
        schedules="1f1b,interleaved-zb,zbv,stash,decoupled",
        rounds=1,
        seconds=60.0,
    ),
    "gpt-to-loss-graph": _real(
        "chars",
        *GRAPHS,
        schedules="1f1b,interleaved-zb,zbv,stash,decoupled",
        rounds=1,
        seconds=60.0,
    ),
    "gpt-to-loss-slow": Case("chars", FAR, schedules=PIPELINES, rounds=1, seconds=60.0),
    **{
        f"gpt-to-loss-slow-{every}": Case(
            "chars", [*FAR, "--truth-every", str(every)], schedules="gpipe,stash,decoupled", rounds=1, seconds=60.0
        )
        for every in (2, 4)
    },
    "gpt-to-loss-slow-softmax": Case(
        GPT, [*FAR, *ALL_ROWS, *FOURTH_TRUE], schedules="gpipe,stash,decoupled", rounds=1, seconds=90.0
    ),
    **{
        f"gpt-to-loss-slow-{milliseconds}ms": Case(
            GPT,
            [*_four(milliseconds), *SLOW, *ALL_ROWS, *FOURTH_TRUE, *LOWER_ABOVE],
            schedules=schedules,
            rounds=1,
            seconds=90.0,
        )
        for milliseconds, schedules in ((240, "gpipe,stash,decoupled"), (120, "gpipe,1f1b,stash,decoupled"))
    },
    "gpt-to-loss-uncut": _real("chars", microbatches="1", rounds=1, seconds=60.0),
    "gpt-to-loss-uncut-4": _real(
        "chars",
        "--truth-every",
        "4",
        schedules="lockstep,zbv,stash,decoupled",
        microbatches="1",
        rounds=1,
        seconds=60.0,
    ),
    "gpt-to-loss-uncut-softmax": _real(
        GPT,
        *ALL_ROWS,
        *BY_COST,
        *HALF_TRUE,
        schedules="lockstep,interleaved-zb,zbv,stash,decoupled",
        microbatches="1",
        rounds=1,
        seconds=60.0,
    ),
    "gpt-to-loss-uncut-virtual": Case(
        GPT,
        [*FOUR, *ALL_ROWS, *FOURTH_TRUE],
        schedules="lockstep,interleaved-zb,zbv,stash,decoupled",
        microbatches="1",
        rounds=1,
        seconds=90.0,
    ),
    "cnn-to-loss": _real(CNN, *TRUE, data="cifar10", rounds=1, seconds=60.0),
    "cnn-to-loss-uncut-muon": _real(
        CNN,
        *TRUE,
        *SMALL,
        *MUON,
        schedules="lockstep,interleaved-zb,replay,stash,decoupled",
        microbatches="1",
        data="cifar10",
        rounds=1,
        seconds=40.0,
    ),
    "cnn-to-loss-uncut-virtual": Case(
        CNN,
        [*QUICK_FOUR, *EACH_TRUE, *GRAPHS, *SMALL, *SLOWER_MUON, *WHOLE],
        schedules="lockstep,replay,stash,decoupled",
        microbatches="1",
        data="cifar10",
        rounds=1,
        seconds=150.0,
    ),
    "cnn-to-loss-off": _real(
        CNN,
        *ONE_GUESS,
        schedules="gpipe,1f1b,interleaved-zb,zbv,stash,decoupled",
        data="cifar10",
        rounds=1,
        seconds=60.0,
    ),
    "cnn-to-loss-uncut-off": _real(
        CNN,
        *ONE_GUESS,
        schedules="lockstep,interleaved-zb,zbv,stash,decoupled",
        microbatches="1",
        data="cifar10",
        rounds=1,
        seconds=60.0,
    ),
    "cnn-to-loss-blocks": Case(
        CNN,
        [*QUICK_FOUR, "--blocks", "2", *SMALL, *SLOWER_MUON, *WHOLE],
        schedules="lockstep,decoupled",
        microbatches="1",
        data="cifar10",
        rounds=1,
        seconds=150.0,
    ),
    "cnn-to-loss-slow": Case(
        CNN,
        [*QUICK_FOUR, *SLOW, *HALF_TRUE, *GRAPHS, *SMALL, *SLOWER_MUON, *WHOLE],
        schedules="gpipe,1f1b,stash,decoupled",
        data="cifar10",
        rounds=1,
        seconds=150.0,
    ),
    "cnn-to-loss-uncut": _real(CNN, *TRUE, *SMALL, data="cifar10", microbatches="1", rounds=1, seconds=40.0),
}


def run(name: str, case: Case, data: Path | None) -> None:
    """Run a case, and keep what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        environment = {**os.environ, "PYTHONPATH": f".:{os.environ.get('PYTHONPATH', '')}"}
        subprocess.run(case.command(data, run_dir), check=True, env=environment, cwd=HERE.parent.parent)
        OUT.mkdir(exist_ok=True)
        made = json.loads((run_dir / "compare.json").read_text())
        for row in made["rows"]:
            row["loss_curve"] = row["loss_curve"][:: max(len(row["loss_curve"]) // 60, 1)]
        made["command"] = ["stepahead", "compare", *case.command(None, Path("RUN"))[4:]]
        (OUT / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")
        shutil.copy(run_dir / "report.html", Path(tempfile.gettempdir()) / f"{name}.html")


def ideal_idle(schedule: str, stages: int, microbatches: int) -> float | None:
    """Return the share of a step in which a stage of GPipe or 1F1B has nothing to do."""
    if schedule not in ("gpipe", "1f1b"):
        return None
    return (stages - 1) / (microbatches + stages - 1)


def _median_ratio(rounds: list[float], others: list[float]) -> float | None:
    """Return the median of the rounds' ratios, as all ratios here are."""
    return median(ours / theirs for ours, theirs in zip(rounds, others, strict=False)) if rounds and others else None


def table(name: str, made: dict[str, Any]) -> Table:
    """Return a row for each schedule of a case."""
    target = f"to {made['target_loss']:.3g}" if made["target_loss"] is not None else "to loss"
    heads = ("schedule", "samples/s", "x lockstep", "x best locked", "of the ceiling", "useful", "tax", "idle (ideal)")
    drawn = Table(*heads, "MB, first stage", target, title=name, box=MARKDOWN)
    top: list[float] = next((row["rounds"] for row in made["rows"] if row["schedule"] == "ceiling"), [])
    for row in made["rows"]:
        rate, count = row["samples_per_second"], row["microbatches"]
        label = row["schedule"] if count is None else f"{row['schedule']} M={count}"
        if rate is None:
            drawn.add_row(label, row["error"] or "")
            continue
        spread = f"{rate:,.0f} ({row['spread'][0]:,.0f} to {row['spread'][1]:,.0f})"
        ratios = [row["ratio_to_lockstep"], row["ratio_to_best_locked"], _median_ratio(row["rounds"], top)]
        useful, tax = row["useful"], row["tax"]
        ideal = ideal_idle(row["schedule"], made["stages"], count or 1)
        idle = (
            f"{1 - mean(useful) - mean(tax):.0%}" + (f" ({ideal:.0%})" if ideal is not None else "") if useful else ""
        )
        drawn.add_row(
            label,
            spread,
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            f"{mean(useful):.0%}" if useful else "",
            f"{mean(tax):.0%}" if useful and max(tax) else "",
            idle,
            f"{row['peak_activation_bytes'][0] / MEGA:.1f}" if row["peak_activation_bytes"] else "",
            "" if row["seconds_to_target"] is None else f"{row['seconds_to_target']:.1f} s",
        )
    return drawn


def by_a_line(made: dict[str, Any]) -> str:
    """Say when each row is at the loss to which all of them come, by a line through its readings over log time.

    The readings are of single batches, and the first one below a loss is a matter of luck. Rows that learn nothing are
    left out.
    """
    curves = {row["schedule"]: [each for each in row["loss_curve"] if each[0] > SETTLED] for row in made["rows"]}
    lines = {name: _line(curve) for name, curve in curves.items() if len(curve) > 1}
    falling = {name: line for name, line in lines.items() if line.slope < 0}
    loss = max(line.intercept + line.slope * math.log(curves[name][-1][0]) for name, line in falling.items())
    seconds = {name: math.exp((loss - line.intercept) / line.slope) for name, line in falling.items()}
    return f"to {loss:.3g} by a line: " + ", ".join(f"{name} {each:.1f} s" for name, each in seconds.items())


def _line(curve: list[list[float]]) -> LinearRegression:
    """Return the loss over the logarithm of the seconds."""
    return linear_regression([math.log(seconds) for seconds, _, _ in curve], [loss for _, _, loss in curve])


def show(name: str, console: Console) -> None:
    """Print what a case has left, if it was run."""
    if (file := OUT / f"{name}.json").exists():
        made = json.loads(file.read_text())
        console.print(table(name, made))
        if "to-loss" in name:
            console.print(by_a_line(made), soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="CASE", choices=[*CASES, "list", "table"])
    parser.add_argument("--data", type=Path, help="a folder with cifar10/, for the cases that train on it")
    options = parser.parse_args()
    console = Console(width=170)
    for name in options.cases:
        if name == "list":
            console.print(*CASES, sep="\n")
        elif name == "table":
            for case in CASES:
                show(case, console)
        else:
            run(name, CASES[name], options.data)
            show(name, console)


if __name__ == "__main__":
    main()
