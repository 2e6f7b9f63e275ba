"""What the loop and the links cost: CPU time a step, of everything that is not the stage's own forward to optimizer.

    python -m benchmarks.processes.overhead [--job digits] [--stages 3] [--steps 300] [--rounds 5]

The workers run as always, only that their spans are measured by the CPU clock instead of the wall's.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import median

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from stepahead.launch import Config, load_job
from stepahead.launch.plan import Plan, make_plan
from stepahead.workers import Spans, process

from .speed import rate


def overheads(plan: Plan) -> list[float]:
    """Return the microseconds of CPU a step of each stage, outside its parts."""
    summary = rate(plan, "decoupled")
    stages = summary["stages"]
    return [(1 - stage["useful"] - stage["tax"]) * stage["seconds"] / summary["steps"] * 1e6 for stage in stages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="digits")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    process.Spans = partial(Spans, now=time.thread_time)  # type: ignore[assignment,misc]
    config = Config(job=options.job, stages=options.stages, steps=options.steps, device="cpu")
    plan = make_plan(config, load_job(options.job))
    rounds = [overheads(plan) for _ in range(options.rounds)]
    result = Table("stage", "us of CPU a step, median", "least", "most", box=MARKDOWN)
    for stage, found in enumerate(zip(*rounds, strict=True)):
        result.add_row(str(stage), f"{median(found):.0f}", f"{min(found):.0f}", f"{max(found):.0f}")
    Console(width=120, markup=False).print(result)


if __name__ == "__main__":
    main()
