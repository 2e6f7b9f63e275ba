"""A self-test of this machine: will stages run side by side here, and how fast do links carry? With advice."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import SGD

from stepahead.pipeline import Gradient, GradientKind, Recipe, Reference, StepaheadError, assemble, cut_model, locked
from stepahead.workers import Receiver, Sender, SharedReceiver, SharedSender, make_sockets, weights_sha256

from .config import read_config
from .environment import cgroup_limit, core_quota, gpus, memory
from .job import Job
from .plan import make_plan
from .run import launch
from .start import fork

__all__ = ["Finding", "check_cores", "check_gpus", "check_limits", "check_links", "check_run", "examine"]

EDGE = "0>1"
SIZES = {"4 KiB": 4 * 2**10, "256 KiB": 256 * 2**10, "4 MiB": 4 * 2**20}
ROUNDS = 200
SLOW = 1e-3
"""Seconds one way for 4 KiB, above which something is wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    about: str
    state: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""


def examine(console: Console | None = None) -> int:
    """Run all checks, show what they found, and return 1 if one failed."""
    console = console or Console(emoji=False)
    checks: Sequence[Callable[[], Finding]] = (check_limits, check_cores, check_links, check_gpus, check_run)
    findings = [_carefully(check) for check in checks]
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "", "found"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(finding.about, finding.state, finding.found)
        if finding.advice:
            table.add_row("", "", f"-> {finding.advice}")
    console.print(table)
    return int(any(finding.state == "failed" for finding in findings))


def check_limits() -> Finding:
    """Is there memory for links, and may files be opened?"""
    about = "memory and limits"
    total, available = memory()
    room = min(available, cgroup_limit() or total)
    descriptor = os.memfd_create("stepahead-doctor")
    try:
        os.posix_fallocate(descriptor, 0, 64 * 2**20)
    except OSError as error:
        advice = "links live in shared memory: raise the limit on memory or on file size (ulimit -f)"
        return Finding(about, "failed", f"64 MiB of shared memory cannot be had: {error.strerror}", advice)
    finally:
        os.close(descriptor)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{room / 2**30:.1f} GiB free, {files} open files"
    if files < 256:
        return Finding(about, "warning", found, "a run with many stages needs more open files: ulimit -n 1024")
    if room < 2**30:
        return Finding(about, "warning", found, "each worker takes some 300 MiB: use fewer stages")
    return Finding(about, "ok", found)


def check_cores() -> Finding:
    """Do processes on different cores slow each other down?"""
    about = "cores"
    cores = sorted(os.sched_getaffinity(0))[:8]
    alone = _work_rate(cores[:1])
    together = _work_rate(cores)
    share = together / alone
    allowed = len(os.sched_getaffinity(0))
    found = f"{allowed} cores; on {len(cores)} at once, each does {share:.0%} of what it does alone"
    quota = core_quota()
    if len(cores) == 1:
        return Finding(about, "warning", "1 core", "stages take turns on it: nothing is gained by running them at once")
    if quota is not None and quota < len(cores):
        return Finding(about, "warning", found, f"the cgroup allows the time of {quota:g} cores: use no more stages")
    if share < 0.7:
        return Finding(about, "warning", found, "cores share hardware, or are busy: timings will tell less")
    return Finding(about, "ok", found)


def check_links() -> Finding:
    """How long does a message take from one process to another?"""
    times = {name: _one_way(size) for name, size in SIZES.items()}
    found = "shared memory, one way: " + ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in times.items())
    if times["4 KiB"] > SLOW:
        return Finding("links", "warning", found, "waking a process takes long: is the machine busy, or throttled?")
    return Finding("links", "ok", found)


def check_gpus() -> Finding:
    """Are there GPUs that torch can use?"""
    names = gpus()
    if not names:
        return Finding("GPUs", "ok", "none: stages run on cores")
    return Finding("GPUs", "ok", ", ".join(names))


def check_run() -> Finding:
    """Do two processes train as one does, to the bit?"""
    about = "a run of two stages"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    batches = [(torch.randn(16, 8), torch.randint(2, (16,))) for _ in range(20)]
    sgd = partial(SGD, lr=0.1)
    groups = cut_model(deepcopy(model), 2)
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=locked, optimizer=sgd)
    list(Reference(assemble(groups, batches[0], recipe)).train(batches))
    expected = weights_sha256(named for group in groups for named in group.named_weights())
    job = Job(model=model, data=batches, loss=nn.CrossEntropyLoss(), optimizer=sgd, signal=locked, name="doctor")
    with tempfile.TemporaryDirectory() as folder:
        settings = {"job": "doctor", "device": "cpu", "baseline": "none", "run_dir": str(Path(folder) / "run")}
        config = read_config(flags=settings)
        result = launch(make_plan(config, job), Console(quiet=True), named=False)
    if result.exit_code:
        return Finding(about, "failed", result.words or "it was interrupted", "stepahead env says more")
    if result.summary["weights_sha256"] != expected:
        advice = "please report it, with what stepahead env says"
        return Finding(about, "failed", "its weights are not those of one process", advice)
    return Finding(about, "ok", f"{result.summary['steps']} steps, the same weights as one process to the bit")


def _carefully(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (OSError, StepaheadError) as error:
        return Finding(check.__name__.removeprefix("check_"), "failed", str(error), "stepahead env says more")


def _work_rate(cores: Sequence[int]) -> float:
    """Return matrix products a second, of the slowest of as many processes as there are cores, each on its own."""
    rates = [os.pipe() for _ in cores]
    pids = [fork(partial(_multiply, core, writing)) for core, (_, writing) in zip(cores, rates, strict=True)]
    results: list[float] = []
    for pid, (reading, writing) in zip(pids, rates, strict=True):
        os.close(writing)
        os.waitpid(pid, 0)
        results.append(float(os.read(reading, 64) or 0))
        os.close(reading)
    return min(results)


def _multiply(core: int, result: int, seconds: float = 1.0) -> int:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    matrix, done = torch.randn(256, 256), 0
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        torch.mm(matrix, matrix)
        done += 1
    os.write(result, str(done / spent).encode())
    return 0


def _one_way(size: int) -> float:
    """Return half of what a message there and back takes, as the median over many."""
    there, back = make_sockets(), make_sockets()

    def echo() -> int:
        receiver, sender = SharedReceiver(EDGE, "the doctor", 2, there[1]), SharedSender(EDGE, "the doctor", 2, back[0])
        for _ in range(ROUNDS):
            sender.send(receiver.receive(timeout=10), timeout=10)
        return 0

    pid = fork(echo)
    there[1].close()
    back[0].close()
    sender, receiver = SharedSender(EDGE, "the echo", 2, there[0]), SharedReceiver(EDGE, "the echo", 2, back[1])
    try:
        return median(_round_trips(sender, receiver, torch.zeros(size // 4))) / 2
    finally:
        sender.close()
        receiver.close()
        os.waitpid(pid, 0)


def _round_trips(sender: Sender, receiver: Receiver, values: torch.Tensor) -> Iterator[float]:
    for step in range(ROUNDS):
        begun = time.perf_counter()
        sender.send(Gradient(edge=EDGE, step=step, tensors=(values,), kind=GradientKind.TARGET), timeout=10)
        receiver.receive(timeout=10)
        yield time.perf_counter() - begun
