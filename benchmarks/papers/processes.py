"""A row of the table through real processes, one for each layer, in exact mode, beside the same in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

from rich.box import MARKDOWN
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Adam

from stepahead.launch import Dataset, Job, Track, minibatches
from stepahead.launch import train as train_in_processes
from stepahead.launch.recording import lines_of
from stepahead.pipeline import Recipe, Reference, accuracy, assemble, cut_model
from stepahead.workers import weights_sha256

from .entry import Budget, Entry, Figures, Trial
from .figures import draw_readings
from .nets import fcn, images
from .training import METHODS, Course, course, falling, test_error

__all__ = ["ENTRIES", "readings_of"]

DEPTH, STEPS, LAG, READINGS = 4, 4000, 2, 20


def _epoch(data: Dataset, now: Course, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    return minibatches(data.train, now.batch, seed=number, epochs=1)


def _in_processes(budget: Budget, title: str) -> Figures:
    now, data = course(budget.full, Course(STEPS)), images(budget.data, True)
    job = Job(
        model=fcn(DEPTH),
        data=partial(_epoch, data, now),
        test=list(zip(data.test[0].split(2000), data.test[1].split(2000), strict=True)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        optimizer=partial(Adam, lr=now.rate),
        lr_schedule=partial(falling, now.drops),
        signal=METHODS["cDNI"](now),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        made = train_in_processes(
            job,
            stages=DEPTH,
            steps=now.steps,
            evaluate_every=now.steps // READINGS,
            lag="exact",
            max_lag=LAG,
            run_dir=run,
            baseline="none",
        )
        read = readings_of(Path(run))
    return {
        "curve": [(step, 100 * (1 - metrics["accuracy"])) for step, _, metrics in read],
        "test_error": 100 * (1 - made["metrics"]["accuracy"]),
        "weights": made["weights_sha256"],
        "steps": made["steps"],
    }


def readings_of(run: Path) -> list[tuple[int, float, dict[str, float]]]:
    """Return the evaluations of a run: after how many steps, after how many seconds, and what was measured."""
    lines = [line for line in lines_of(run) if "time" in line]
    begun = lines[0]["time"]
    return [(step, line["time"] - begun, metrics) for line in lines for step, metrics in line.get("evaluations", ())]


def _in_one(budget: Budget, title: str) -> Figures:
    now, data = course(budget.full, Course(STEPS)), images(budget.data, True)
    recipe = Recipe(
        loss=nn.CrossEntropyLoss(),
        signal=METHODS["cDNI"](now),
        optimizer=partial(Adam, lr=now.rate),
        lr_schedule=partial(falling, now.drops),
    )
    groups = cut_model(fcn(DEPTH), DEPTH)
    example = data.train[0][: now.batch], data.train[1][: now.batch]
    reference = Reference(assemble(groups, example, recipe), lag=LAG)
    batches = chain.from_iterable(map(partial(_epoch, data, now), count()))
    curve = list[tuple[int, float]]()
    steps = reference.train(islice(batches, now.steps))
    for report in Track(steps, total=now.steps, title=title, every_seconds=60):
        if (report.step + 1) % (now.steps // READINGS) == 0:
            curve.append((report.step + 1, test_error(reference, data)))
    weights = weights_sha256(named for group in groups for named in group.named_weights())
    return {"test_error": test_error(reference, data), "curve": curve, "weights": weights, "steps": reference.step}


def _trials(full: bool) -> list[Trial]:
    return [Trial("four processes", _in_processes), Trial("one process", _in_one)]


def _table(results: Mapping[str, Figures]) -> Table:
    drawn = Table("cDNI, 4 layers, lag 2", "steps", "test error, %", "weights (sha256)", box=MARKDOWN)
    for key, line in results.items():
        drawn.add_row(key, str(line["steps"]), f"{line['test_error']:.2f}", line["weights"][:16])
    return drawn


def _draw(results: Mapping[str, Figures], file: Path) -> None:
    draw_readings({"": {key: line["curve"] for key, line in results.items()}}, "steps", "test error, %", file)


ENTRIES = {"processes": Entry("MNIST, 4 layers, each in a process of its own", _trials, _table, _draw)}
