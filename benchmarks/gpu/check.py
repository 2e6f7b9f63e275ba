"""What one GPU can show: whether runs on it are exact, what spans say, how fast, how much memory, what NCCL refuses.

    benchmarks/gpu/check.sh [--device cuda:0] [--rounds 3] [--out FILE]

Each row is tried by itself: one that fails says so, and the others still come. On a CPU what needs a GPU is left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.multiprocessing as torch_processes
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.distributed import FileStore, Store  # type: ignore[attr-defined]

from stepahead.launch import Config
from stepahead.launch.plan import Plan, plan_run
from stepahead.launch.run import launch
from stepahead.pipeline import Batch, Reference, assemble, build_groups
from stepahead.pipeline.devices import clock, pin, queue_clock, unpin
from stepahead.workers import weights_sha256
from stepahead.workers.pairs import NcclPair
from stepahead.workers.ring import Memory

JOB = "benchmarks/gpu/job.py"
EXACT_LAG = 3
STEPS, WARM_UP = 120, 20
SIZES = {
    "width 256, batch 128": (256, 128),
    "width 1024, batch 512": (1024, 512),
    "width 4096, batch 1024": (4096, 1024),
}
COPIED = 2**22
NCCL_PATIENCE = 60.0
MILLION = 1e6


@dataclass(frozen=True)
class Finding:
    """One row."""

    what: str
    seen: str
    holds: bool | None = None
    """Whether it is as it should be, where it can be otherwise."""


@dataclass(frozen=True)
class Bench:
    """Where the checks run."""

    device: torch.device
    rounds: int

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def plan(self, **settings: Any) -> Plan:
        fixed: dict[str, Any] = {"job": JOB, "device": str(self.device), "baseline": "none"}
        return plan_run(Config(**fixed | settings))

    def run(self, plan: Plan) -> dict[str, Any]:
        """Return the summary of a run with processes."""
        with tempfile.TemporaryDirectory() as folder:
            config = replace(plan.config, run_dir=str(Path(folder) / "run"))
            result = launch(replace(plan, config=config), Console(quiet=True))
        if result.exit_code:
            raise RuntimeError(result.words)
        return dict(result.summary)


def exactness(bench: Bench) -> Iterator[Finding]:
    """Processes that share the GPU give the bits of one process, over each link and with each use of the truth."""
    for stages in (2, 3):
        for settings in (
            {"truth": "off"},
            {"truth": "true-up"},
            {"truth": "replay"},
            {"schedule": "lockstep"},
            {"truth": "off", "link": "zmq"},
            {"truth": "off", "link": "dist"},
        ):
            plan = bench.plan(stages=stages, lag="exact", **settings)
            found, expected = bench.run(plan)["weights_sha256"], _reference(plan)
            named = ", ".join(settings.values())
            yield Finding(
                f"exact, {stages} stages, {named}", f"{found[:12]}, reference {expected[:12]}", found == expected
            )


def _reference(plan: Plan) -> str:
    """Return the digest of the weights that one process comes to."""
    recipe = plan.work(0).recipe
    groups = build_groups(plan.layers, plan.cut, seed=plan.config.seed)
    batches: list[Batch] = list(plan.job.data)  # type: ignore[arg-type]
    reference = Reference(assemble(groups, batches[0], recipe, devices=plan.devices), lag=EXACT_LAG)
    list(reference.train(batches))
    return weights_sha256(named for group in groups for named in group.named_weights())


def pace(bench: Bench) -> Iterator[Finding]:
    """Samples a second beside lockstep, in turn; where the time goes; memory."""
    for size, (width, batch) in SIZES.items():
        if not bench.on_gpu and width > 256:
            continue
        options = {"width": width, "batch": batch, "batches": STEPS}
        ways: dict[str, dict[str, Any]] = {
            "lockstep": {"schedule": "lockstep"},
            "truth off": {"truth": "off"},
            "default truth": {},
        }
        plans = {name: bench.plan(stages=2, options=options, **settings) for name, settings in ways.items()}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for _ in range(bench.rounds):
            for name, plan in plans.items():
                found[name].append(bench.run(plan))
        rates = {name: [run["samples_per_second"] for run in runs] for name, runs in found.items()}
        for name, runs in found.items():
            over = sorted(a / b for a, b in zip(rates[name], rates["lockstep"], strict=True))
            spread = f"{median(over):.2f} of lockstep ({over[0]:.2f} to {over[-1]:.2f})"
            yield Finding(f"{size}: {name}", f"{median(rates[name]):,.0f} samples/s, {spread}")
            yield Finding(f"{size}: {name}, time", "; ".join(map(_shares, runs[-1]["stages"])))
            if bench.on_gpu:
                memory = ", ".join(f"{stage['device_memory_bytes'] / MILLION:,.0f}" for stage in runs[-1]["stages"])
                yield Finding(f"{size}: {name}, MB on the GPU", memory)


def _shares(stage: dict[str, Any]) -> str:
    idle = sum(stage["idle"].values())
    cause = max(stage["idle"], key=lambda cause: stage["idle"][cause])
    return f"useful {stage['useful']:.0%} tax {stage['tax']:.0%} idle {idle:.0%} ({cause})"


def events(bench: Bench) -> Iterator[Finding]:
    """A GPU's own times beside those of a host that waits for it."""
    queue, now = queue_clock(bench.device), clock(bench.device)
    if queue is None:
        return
    matrix = torch.randn(4096, 4096, device=bench.device)
    by_host: list[float] = []
    by_device: list[float] = []
    for _ in range(20):
        begun, begin = now(), queue.point()
        for _ in range(10):
            torch.mm(matrix, matrix)
        end = queue.point()
        by_host.append(now() - begun)
        began, ended = queue.times(begin, end)
        by_device.append((ended - began) / 1e9)
    host, device = median(by_host[5:]) * 1e3, median(by_device[5:]) * 1e3
    yield Finding("ten products of matrices, ms", f"events {device:.3f}, host {host:.3f}", abs(device / host - 1) < 0.1)
    late = time.perf_counter_ns() - queue.times(queue.point(), queue.point())[1]
    yield Finding("the event's clock behind the host's, us", f"{late / 1e3:.0f}", 0 <= late < 1_000_000)


def copies(bench: Bench) -> Iterator[Finding]:
    """What the way through a link's memory takes, pinned as a worker's is, and as it would be otherwise."""
    if not bench.on_gpu:
        return
    torch.cuda.init()
    memory = Memory.create(1, COPIED, "check")
    yield Finding("a link's memory is pinned", str(memory.pinned), memory.pinned)
    memory.close()
    values, now = torch.ones(COPIED // 4, device=bench.device), clock(bench.device)
    own, pinned = torch.empty(COPIED // 4), torch.empty(COPIED // 4)
    if not pin(pinned):
        yield Finding("memory of our own", "cannot be pinned", False)
        return
    for name, place in (("pinned", pinned), ("not pinned", own)):
        for what, copy in (("into", partial(place.copy_, values)), ("out of", partial(values.copy_, place))):
            times: list[float] = []
            for _ in range(50):
                begun = now()
                copy()
                times.append(now() - begun)
            yield Finding(f"4 MiB {what} memory that is {name}, us", f"{median(times[5:]) * 1e6:.0f}")
    unpin(pinned)


def nccl(bench: Bench) -> Iterator[Finding]:
    """NCCL with one rank; two ranks on one GPU are refused, and the run says so and takes gloo."""
    if not bench.on_gpu:
        return
    with tempfile.TemporaryDirectory() as folder:
        one = _in_processes(_one_rank, Path(folder) / "one", bench.device, 1)
        yield Finding("NCCL, a group of one rank", one, one == "sums")
        two = _in_processes(_two_ranks, Path(folder) / "two", bench.device, 2)
        yield Finding("NCCL, two ranks on one GPU", two, two != "sent")
    plan = bench.plan(stages=2, link="dist")
    said = [note for note in plan.notes if "NCCL" in note]
    yield Finding("--link dist there", "; ".join(said), bool(said) and plan.wiring.kind("0", "1") == "gloo")


def _in_processes(what: Callable[..., str], folder: Path, device: torch.device, ranks: int) -> str:
    """Return what the first of some processes says."""
    folder.mkdir()
    context = torch_processes.get_context("spawn")
    processes = [context.Process(target=_say, args=(what, folder, rank, device), daemon=True) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + NCCL_PATIENCE
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.0))
        process.kill()
        process.join()
    said = folder / "0.said"
    return said.read_text() if said.exists() else f"nothing within {NCCL_PATIENCE:g} s"


def _say(what: Callable[..., str], folder: Path, rank: int, device: torch.device) -> None:
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    try:
        said = what(FileStore(str(folder / "store"), -1), rank, device)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "uplicate" in line] or str(error).splitlines()[:1]
        said = f"{type(error).__name__}: {lines[0].strip():.100}"
    (folder / f"{rank}.said").write_text(said)
    os._exit(0)  # a communicator that was refused may hang at its end


def _one_rank(store: Store, rank: int, device: torch.device) -> str:
    from torch.distributed import ProcessGroupNCCL

    kind: Any = ProcessGroupNCCL
    group, values = kind(store, 0, 1, kind.Options()), torch.ones(8, device=device)
    group.allreduce([values]).wait()
    torch.cuda.synchronize(device)
    return "sums" if float(values.sum()) == 8.0 else "wrong"


def _two_ranks(store: Store, rank: int, device: torch.device) -> str:
    pair, values = NcclPair(store, rank, device), torch.ones(8, dtype=torch.uint8, device=device)
    (pair.get if rank else pair.put)(values)
    return "sent"


def check(bench: Bench, console: Console) -> list[Finding]:
    findings: list[Finding] = []
    for part in (events, copies, nccl, exactness, pace):
        begun = time.monotonic()
        try:
            for finding in part(bench):
                findings.append(finding)
                console.print(f"{finding.what}: {finding.seen}", highlight=False)
        except Exception as error:
            findings.append(Finding(part.__name__, f"failed: {type(error).__name__}: {error}", False))
            console.print(findings[-1].seen)
        console.print(f"{part.__name__}: {time.monotonic() - begun:.0f} s", style="dim")
    return findings


def about(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return f"{name}; torch {torch.__version__}{cuda}; Python {platform.python_version()}; {platform.release()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file for the table, in Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    findings = check(Bench(device, options.rounds), Console(stderr=True))
    table = Table("what", "seen", "holds", title=about(device), box=MARKDOWN)
    for finding in findings:
        table.add_row(finding.what, finding.seen, {None: "", True: "yes", False: "NO"}[finding.holds])
    console = Console(width=160, record=True, markup=False)
    console.print(table)
    if options.out is not None:
        options.out.write_text(console.export_text())
    raise SystemExit(any(finding.holds is False for finding in findings))


if __name__ == "__main__":
    main()
