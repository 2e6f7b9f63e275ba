"""What it costs to be watched: telemetry in a worker, and the launcher with its view.

    python -m benchmarks.processes.watching [--rounds 5]

Telemetry: what the spans of one step take, warm and after a sweep over memory that drove them out of the caches, on and
off in turn. View: CPU time of the launcher and of the view on a pseudo-terminal, over the
wall time.
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import tempfile
import termios
import time
from pathlib import Path
from statistics import median

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from stepahead.launch.cli import main as stepahead
from stepahead.workers import Spans, Telemetry
from stepahead.workers.spans import SpanName
from stepahead.workers.telemetry import EVENTS_KEPT

STEP: tuple[SpanName, ...] = (
    "wait_input",
    "forward",
    "send",
    "predict",
    "backward",
    "send",
    "optimizer",
    "wait_gradient",
    "learn",
    "wait_credit",
)
"""The spans of a step, as many as a middle stage has."""
SWEEP = 16 * 2**20


def telemetry_cost(rounds: int) -> Table:
    """Return microseconds of the spans of one step."""
    table = Table("caches", "us a step", "of 5 ms", "telemetry off", "of 5 ms", box=MARKDOWN)
    for caches, sweep in (("warm", 0), ("swept", SWEEP)):
        spans = {events: Spans(Telemetry(events)) for events in (EVENTS_KEPT, 0)}
        found: dict[int, list[float]] = {events: [] for events in spans}
        memory = torch.zeros(max(sweep // 4, 1))
        for _ in range(100 * rounds):
            for events, those in spans.items():
                memory.add_(1)
                found[events].append(_time_of_step(those))
        on, off = median(found[EVENTS_KEPT]), median(found[0])
        table.add_row(caches, f"{on:.1f}", f"{on / 5000:.2%}", f"{off:.1f}", f"{off / 5000:.3%}")
    return table


def _time_of_step(spans: Spans) -> float:
    begun = time.perf_counter_ns()
    for name in STEP:
        with spans(name):
            pass
    return (time.perf_counter_ns() - begun) / 1e3


def view_cost(stages: int, seconds: float) -> tuple[float, float]:
    """Return the shares of a core that the launcher and its view take."""
    with tempfile.TemporaryDirectory() as folder:
        pid, master = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "xterm-256color"
            termios.tcsetwinsize(0, (40, 120))  # a terminal without a size gets no view
            options = ["--stages", str(stages), "--steps", "100000", "--baseline", "none", "--truth", "off"]
            options += ["--evaluate-every", "100000"]
            try:
                stepahead(["train", "digits", "--run-dir", str(Path(folder) / "run"), *options])
            finally:
                os._exit(0)
        _drain(master, 6.0)
        viewer = max(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        before, begun = (_cpu(pid), _cpu(viewer)), time.monotonic()
        _drain(master, seconds)
        wall = time.monotonic() - begun
        shares = (_cpu(pid) - before[0]) / wall, (_cpu(viewer) - before[1]) / wall
        os.write(master, b"\x03")
        _drain(master, 8.0)
        os.waitpid(pid, 0)
        os.close(master)
    return shares


def _drain(master: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([master], [], [], left)[0]:
            try:
                os.read(master, 65536)
            except OSError:
                return


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120, markup=False)
    console.print(telemetry_cost(options.rounds))
    views = Table("stages", "launcher", "view", "both, of one core", box=MARKDOWN)
    for stages in (2, 8):
        launcher, view = view_cost(stages, options.seconds)
        views.add_row(str(stages), f"{launcher:.1%}", f"{view:.1%}", f"{launcher + view:.1%}")
    console.print(views)


if __name__ == "__main__":
    main()
