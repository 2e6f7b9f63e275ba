"""Two stages on two cores: decoupled beside lockstep, and beside what the groups could reach without links.

    python -m benchmarks.processes.speed [--job digits] [--stages 2] [--steps 150] [--rounds 7]

The three take turns (A B C A B C ..) in one run on the same job; medians are compared, absolute rates mean little.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from stepahead.launch import Config
from stepahead.launch.plan import Plan, plan_run
from stepahead.launch.run import launch

from .ceiling import ceiling


def rate(plan: Plan, schedule: str) -> dict[str, Any]:
    """Return the summary of a run of a schedule, without evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(plan.config, schedule=schedule, run_dir=str(Path(folder) / "run"), evaluate_every=None)
        quiet = replace(plan, config=config, job=replace(plan.job, test=None))
        result = launch(quiet, Console(quiet=True))
    assert result.exit_code == 0, result.words
    return dict(result.summary)


def measure(plan: Plan, rounds: int) -> dict[str, list[float]]:
    """Return samples a second of each, a round at a time."""
    steps = plan.config.steps or 1
    runs: dict[str, Callable[[], float]] = {
        "lockstep": lambda: rate(plan, "lockstep")["samples_per_second"],
        "decoupled": lambda: rate(plan, "decoupled")["samples_per_second"],
        "ceiling": lambda: ceiling(plan, steps),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            found = run()
            if number:  # the first round warms the machine
                rates[name].append(found)
        Console(stderr=True).print(number, {name: round(found[-1]) for name, found in rates.items() if found})
    return rates


def table(rates: dict[str, list[float]]) -> Table:
    result = Table("schedule", "samples/s", "over lockstep", "of the ceiling", box=MARKDOWN)
    for name, found in rates.items():
        over = [a / b for a, b in zip(found, rates["lockstep"], strict=True)]
        share = [a / b for a, b in zip(found, rates["ceiling"], strict=True)]
        result.add_row(name, f"{median(found):,.0f}", spread(over), spread(share))
    return result


def spread(ratios: list[float]) -> str:
    low, _, high = quantiles(ratios, n=4)
    return f"{median(ratios):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="digits")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = Config(
        job=options.job, stages=options.stages, steps=options.steps, device="cpu", baseline="none", truth="off"
    )
    plan = plan_run(config)
    rates = measure(plan, options.rounds)
    shares = rate(plan, "decoupled")["stages"]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    report = {"versions": versions, "job": options.job, "samples_per_second": rates, "stages": shares}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    Console(width=120, markup=False).print(table(rates))


if __name__ == "__main__":
    main()
