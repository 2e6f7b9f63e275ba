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
from stepahead.pipeline import Recipe, Reference, accuracy, assemble, cut_model
from stepahead.workers import weights_sha256

from .entry import Budget, Entry, Figures, Trial
from .nets import fcn, images
from .training import METHODS, Course, course, falling

__all__ = ["ENTRIES"]

DEPTH, STEPS, LAG = 4, 4000, 2


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
            job, stages=DEPTH, steps=now.steps, lag="exact", max_lag=LAG, run_dir=run, baseline="none"
        )
    return {
        "test_error": 100 * (1 - made["metrics"]["accuracy"]),
        "weights": made["weights_sha256"],
        "steps": made["steps"],
    }


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
    for _ in Track(reference.train(islice(batches, now.steps)), total=now.steps, title=title, every_seconds=60):
        pass
    test = reference.evaluate(zip(data.test[0].split(2000), data.test[1].split(2000), strict=True), {"is": accuracy})
    weights = weights_sha256(named for group in groups for named in group.named_weights())
    return {"test_error": 100 * (1 - test["is"]), "weights": weights, "steps": reference.step}


def _trials(full: bool) -> list[Trial]:
    return [Trial("four processes", _in_processes), Trial("one process", _in_one)]


def _table(results: Mapping[str, Figures]) -> Table:
    drawn = Table("cDNI, 4 layers, lag 2", "steps", "test error, %", "weights (sha256)", box=MARKDOWN)
    for key, line in results.items():
        drawn.add_row(key, str(line["steps"]), f"{line['test_error']:.2f}", line["weights"][:16])
    return drawn


ENTRIES = {"processes": Entry("MNIST, 4 layers, each in a process of its own", _trials, _table)}
