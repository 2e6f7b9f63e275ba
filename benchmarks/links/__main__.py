"""Every link beside the bare libraries: latency and stream of three sizes, idle, with both cores busy, and on one core.

    python -m benchmarks.links [--rounds 7]

Two processes, each on a core of its own unless said otherwise. A latency is half of what a message there and back
takes, one at a time; a stream is eight messages on their way. All take turns, block by block; medians over the rounds,
quartiles in brackets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .transports import TRANSPORTS, BareGloo, Make, Talker

OUT = Path(__file__).parent / "links.json"
SIZES = {"4 KiB": 4096, "256 KiB": 2**18, "4 MiB": 2**22}
PINGS = {"4 KiB": 400, "256 KiB": 200, "4 MiB": 40}
STREAM_BYTES = 2**27
MOST_STREAMED = 2000
LIMIT = "memcpy into a slot"
ONE_CORE = "one core 4 KiB"
FORK = get_context("fork")


@dataclass
class Pair:
    """This process and another one, joined by one transport."""

    talker: Talker
    commands: Connection
    process: Any

    def latency(self, size: int, pings: int) -> float:
        """Return the median of half a way there and back, in microseconds."""
        values = self._begin("ping", size, pings)
        times: list[float] = []
        for _ in range(pings):
            begun = time.perf_counter()
            self.talker.send(values)
            self.talker.receive()
            times.append(time.perf_counter() - begun)
        return median(times) / 2 * 1e6

    def stream(self, size: int, messages: int) -> float:
        """Return gigabytes a second, one way."""
        values = self._begin("stream", size, messages)
        begun = time.perf_counter()
        for _ in range(messages):
            self.talker.send(values)
        self.talker.receive()
        return size * messages / (time.perf_counter() - begun) / 1e9

    def _begin(self, what: str, size: int, messages: int) -> Tensor:
        self.commands.send((what, size, messages))
        self.commands.recv()
        _expect(self.talker, size)
        return torch.ones(size // 4)


def _expect(talker: Talker, size: int) -> None:
    """Let the one that must know the size beforehand know it."""
    if isinstance(talker, BareGloo):
        talker.size = size


def _serve(make: Make, barrier: Any, commands: Connection, core: int) -> None:
    """Be the other process."""
    os.sched_setaffinity(0, {core})
    talker = make(False, barrier.wait)
    while True:
        what, size, messages = commands.recv()
        _expect(talker, size)
        commands.send("ready")
        for number in range(messages):
            values = talker.receive()
            if what == "ping" or number == messages - 1:
                talker.send(values)


@contextmanager
def pairs(cores: list[int]) -> Generator[dict[str, Pair]]:
    """Yield a pair for each transport."""
    made: dict[str, Pair] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, begin in TRANSPORTS.items():
            place = Path(folder) / str(len(made))
            place.mkdir()
            make, barrier, (ours, theirs) = begin(place), FORK.Barrier(2), FORK.Pipe()
            process = FORK.Process(target=_serve, args=(make, barrier, theirs, cores[1]), daemon=True)
            process.start()
            made[name] = Pair(make(True, barrier.wait), ours, process)
        yield made
        for pair in made.values():
            pair.process.kill()
            pair.process.join()


@contextmanager
def beside(core: int) -> Generator[None]:
    """Let this process, with all its threads, run on the core of the other ones meanwhile."""
    threads = [int(each) for each in os.listdir("/proc/self/task")]
    before = {each: os.sched_getaffinity(each) for each in threads}
    for each in threads:
        os.sched_setaffinity(each, {core})
    yield
    for each, own in before.items():
        os.sched_setaffinity(each, own)


@contextmanager
def busy(cores: list[int]) -> Generator[None]:
    """Keep every core busy with products of matrices."""
    processes = [FORK.Process(target=_multiply, args=(core,), daemon=True) for core in cores]
    for process in processes:
        process.start()
    yield
    for process in processes:
        process.kill()
        process.join()


def _multiply(core: int) -> None:
    os.sched_setaffinity(0, {core})
    matrix = torch.randn(256, 256)
    while True:
        torch.mm(matrix, matrix)


def memcpy(size: int) -> float:
    """Return the microseconds in which a tensor is copied into one of eight slots in turn."""
    slots, values = torch.empty(8, size // 4), torch.ones(size // 4)
    times: list[float] = []
    for number in range(200):
        begun = time.perf_counter()
        slots[number % 8].copy_(values)
        times.append(time.perf_counter() - begun)
    return median(times[20:]) * 1e6


def measure(rounds: int, cores: list[int]) -> dict[str, dict[str, list[float]]]:
    """Return the figures of each transport: by what was measured, those of each round."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in (*TRANSPORTS, LIMIT)}

    def note(number: int, name: str, what: str, figure: Callable[..., float], *arguments: int) -> None:
        value = figure(*arguments)
        if number:  # the first round warms everything
            found[name].setdefault(what, []).append(value)

    with pairs(cores) as made:
        for number in range(rounds + 1):
            for label, size in SIZES.items():
                messages = min(STREAM_BYTES // size, MOST_STREAMED)
                for name, pair in made.items():
                    note(number, name, label, pair.latency, size, PINGS[label])
                    note(number, name, f"stream {label}", pair.stream, size, messages)
                note(number, LIMIT, label, memcpy, size)
            with beside(cores[1]):
                for name, pair in made.items():
                    note(number, name, ONE_CORE, pair.latency, SIZES["4 KiB"], PINGS["4 KiB"])
            with busy(cores):
                for name, pair in made.items():
                    note(number, name, "busy 256 KiB", pair.latency, SIZES["256 KiB"], 100)
                    note(number, name, "busy stream", pair.stream, SIZES["256 KiB"], 200)
            Console(stderr=True).print(f"round {number} of {rounds}")
    return found


def tables(found: dict[str, dict[str, list[float]]]) -> Iterator[Table]:
    names = [*SIZES, ONE_CORE, "busy 256 KiB"]
    yield _table("one way, us", found, names, ".1f")
    yield _table("GB/s", found, [f"stream {label}" for label in SIZES] + ["busy stream"], ".2f")


def _table(title: str, found: dict[str, dict[str, list[float]]], names: list[str], form: str) -> Table:
    made = Table(title, *(name.removeprefix("stream ") for name in names), box=MARKDOWN)
    for transport, figures in found.items():
        if any(name in figures for name in names):
            made.add_row(transport, *(_spread(figures.get(name, []), form) for name in names))
    return made


def _spread(figures: list[float], form: str) -> str:
    if not figures:
        return ""
    low, middle, high = quantiles(figures, n=4) if len(figures) > 1 else figures * 3
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("two cores are needed, one for each process")
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {cores[0]})
    found = measure(options.rounds, cores)
    about = {"torch": torch.__version__, "python": platform.python_version(), "kernel": platform.release()}
    options.out.write_text(json.dumps({"about": about, "figures": found}, indent=1) + "\n")
    console = Console(width=200)
    for each in tables(found):
        console.print(each)


if __name__ == "__main__":
    main()
