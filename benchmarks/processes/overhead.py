"""What the loop and the links cost: the time a step of everything in a worker that is not its stage.

    python -m benchmarks.processes.overhead [--job digits] [--stages 2] [--rounds 7] [--set options.batch=180]

The workers run as always; a clock is read around each call into the stage and around each wait, and what is left over
is the loop, the links and the reports, with the CPU time of the waits. The clock is the wall's, for reading the CPU's
is a system call: 10 us when it has not been made for a while. What other processes take of the core in between counts
too, so the truth is rather less. The first steps, in which the stage and the memory are made, do not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from stepahead.launch.config import read_config
from stepahead.launch.plan import Plan, plan_run
from stepahead.pipeline import Activation, Gradient
from stepahead.workers import Loop, Wait
from stepahead.workers.waiting import Waitable, Waiter

from .speed import rate

SKIPPED = 10


class Meter:
    """Seconds of this process in the stage, and in waits but for their CPU time."""

    elsewhere = 0.0


meter = Meter()


class MeteredLoop(Loop):
    """A loop that keeps its own time apart from its stage's, and leaves it in a file."""

    results: Path

    def run(self) -> Iterator[Wait | None]:
        begun = time.perf_counter()
        skipping = True
        for wait in super().run():
            if skipping and self.progress.steps == SKIPPED:
                skipping, begun, meter.elsewhere = False, time.perf_counter(), 0.0
            yield wait
        spent = time.perf_counter() - begun - meter.elsewhere
        assert self.stage is not None
        microseconds = spent / (self.progress.steps - SKIPPED) * 1e6
        (self.results / str(self.stage.index)).write_text(str(microseconds))

    def _send_all(self, messages: Iterator[Activation | Gradient]) -> Iterator[Wait]:
        while True:
            begun = time.perf_counter()
            message = next(messages, None)
            meter.elsewhere += time.perf_counter() - begun
            if message is None:
                return
            yield from self._send(message)


class MeteredWaiter(Waiter):
    """A waiter whose time does not count, but for the CPU's; so it does not look before it sleeps."""

    def __init__(self, ends: Iterable[Waitable], spin: float = 0.0) -> None:
        super().__init__(ends, spin, look=0.0)

    def wait(self, timeout: float) -> bool:
        begun, used = time.perf_counter(), time.thread_time()
        happened = super().wait(timeout)
        used = time.thread_time() - used
        meter.elsewhere += time.perf_counter() - begun - used
        return happened


def overheads(plan: Plan) -> list[float]:
    """Return the microseconds a step of each worker outside its stage and its waits."""
    with tempfile.TemporaryDirectory() as folder:
        MeteredLoop.results = Path(folder)
        rate(plan, "decoupled")
        return [float((Path(folder) / str(stage)).read_text()) for stage in range(plan.stages)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="digits")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], help="as for the command")
    options = parser.parse_args()
    torch.set_num_threads(1)
    flags = {"job": options.job, "stages": options.stages, "steps": options.steps, "device": "cpu", "baseline": "none"}
    config = read_config(assignments=["truth=off", *options.set], flags=flags)
    plan = plan_run(config)
    with patch("stepahead.workers.work.Loop", MeteredLoop), patch("stepahead.workers.post.Waiter", MeteredWaiter):
        rounds = [overheads(plan) for _ in range(options.rounds)]
    result = Table("stage", "us a step, median", "least", "most", box=MARKDOWN)
    for stage, found in enumerate(zip(*rounds, strict=True)):
        result.add_row(str(stage), f"{median(found):.0f}", f"{min(found):.0f}", f"{max(found):.0f}")
    Console(width=120, markup=False).print(result)


if __name__ == "__main__":
    main()
