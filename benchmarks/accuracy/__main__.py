"""Train rows of the tables, and print what there is.

    python -m benchmarks.accuracy chars backprop replay "true-up k=4" --data DIR
    python -m benchmarks.accuracy chars "true-up k=4" --data DIR --lag 4 --seeds 0,1,2
    python -m benchmarks.accuracy table

Without rows, all of them. DIR holds text/tinyshakespeare.txt, mnist/ with the four idx files, and cifar10/ with the
binary batches. A finished run is not run again: results are lines of the file that --out names.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from stepahead.launch import Track
from stepahead.pipeline import Batch, Recipe, Reference, assemble, cut_model, did_you_mean

from .operations import Operations
from .rows import ROWS, Row
from .tasks import TASKS, Task

OUT = Path(__file__).parent / "results.jsonl"
WARM_UP, COUNTED = 32, 16
"""Steps before, and steps over which floating-point operations are counted: a multiple of every period."""


@dataclass(frozen=True)
class Result:
    """One run and what came of it."""

    task: str
    row: str
    lag: int
    """Times the lags that processes have."""
    seed: int
    figure: float
    """Validation loss or test error, at the end."""
    curve: list[tuple[int, float]]
    train_loss: float
    cosines: list[float]
    forwards: float
    """What a batch costs, predictors included, in forward passes of the model."""
    held: list[int]
    """Bytes kept for batches on their way, of each stage; and how many graphs."""
    graphs: list[int]
    steps: int
    seconds: float
    torch: str


def prepare(task: Task, row: Row, lag: int, seed: int) -> Reference:
    recipe = Recipe(
        loss=task.loss,
        signal=row.recipe(task),
        truth=replace(row.truth, full_rate_lag=row.truth.full_rate_lag / lag),
        optimizer=task.optimizer(row.rate * task.rate),
        lr_schedule=task.lr_schedule,
        seed=seed,
    )
    stages = assemble(cut_model(task.model, task.stages, seed=seed), next(task.batches(seed)), recipe)
    relayed = [2 * lag * (task.stages - 1 - stage) for stage in range(task.stages - 1)]
    return Reference(stages, lag=2 * lag, truth_lag=relayed)


def train(name: str, task_name: str, task: Task, row: Row, lag: int, seed: int) -> Result:
    reference = prepare(task, row, lag, seed)
    curve: list[tuple[int, float]] = []
    start, loss = time.monotonic(), 0.0
    reports = reference.train(task.batches(seed), steps=task.steps)
    track = Track(reports, total=task.steps, title=f"{task_name} {name} x{lag} seed {seed}", every_seconds=30)
    for report in track:
        loss += (report.loss - loss) / 100
        done = report.step + 1
        if done % task.evaluate_every == 0 and done < task.steps:
            curve.append((done, _judge(reference, task, task.test[:5])))
            track.note(figure=curve[-1][1])
    curve.append((task.steps, _judge(reference, task, task.test)))  # after the last gradients have come
    statistics = [stage.statistics() for stage in reference.stages]
    return Result(
        task=task_name,
        row=name,
        lag=lag,
        seed=seed,
        figure=curve[-1][1],
        curve=curve,
        train_loss=round(loss, 4),
        cosines=[round(each.quality.cosine, 3) for each in statistics if each.quality],
        forwards=round(_flops_of_a_step(task, row) / _forward_flops(reference, task), 2),
        held=[stage.most_held for stage in reference.stages],
        graphs=[stage.kept.most_graphs for stage in reference.stages],
        steps=task.steps,
        seconds=round(time.monotonic() - start, 1),
        torch=str(torch.__version__),
    )


def _judge(reference: Reference, task: Task, test: Sequence[Batch]) -> float:
    return round(task.judge(reference.evaluate(test, task.metrics)), 4)


def _flops_of_a_step(task: Task, row: Row) -> float:
    """Return the floating-point operations of a step, predictors included."""
    reference, batches = prepare(task, row, 1, 0), task.batches(0)
    list(reference.train(batches, steps=WARM_UP))
    with Operations() as counter:
        list(reference.train(batches, steps=COUNTED))  # with all that comes back for them
    return counter.total / COUNTED


def _forward_flops(reference: Reference, task: Task) -> float:
    """Return the floating-point operations of one forward pass."""
    batch = next(task.batches(0))
    with Operations() as counter:
        reference.evaluate([batch])
    return float(counter.total)


def load(path: Path) -> list[Result]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def table(results: Sequence[Result]) -> Table:
    headings = ("task", "steps", "lag", "row", "figure", "each seed", "cosine", "forwards", "held, MB", "seconds")
    made = Table(*headings, box=MARKDOWN)
    keys = {(result.task, result.steps, result.lag, result.row) for result in results}
    for task, steps, lag, row in sorted(keys):
        wanted = (task, steps, lag, row)
        runs = [result for result in results if (result.task, result.steps, result.lag, result.row) == wanted]
        cosines = [cosine for run in runs for cosine in run.cosines]
        made.add_row(
            task,
            f"{steps:,}",
            f"x{lag}",
            row,
            f"{mean(run.figure for run in runs):.3f}",
            " ".join(f"{run.figure:.3f}" for run in runs),
            f"{mean(cosines):.2f}" if cosines else "",
            f"{runs[0].forwards:.2f}",
            f"{sum(runs[0].held) / 1e6:.1f}",
            f"{mean(run.seconds for run in runs):.0f}",
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*TASKS, "table"])
    parser.add_argument("rows", nargs="*", help=", ".join(ROWS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--lag", type=int, default=1, help="times the lags that processes have")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, help="as many as the task says, unless given; its schedule goes with it")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    for name in options.rows:
        if name not in ROWS:
            parser.error(f"there is no row {name!r}; {did_you_mean(name, ROWS)}")
    if options.task != "table":
        if options.data is None:
            parser.error("--data is missing: the folder with the texts and images")
        run(options)
    Console(width=160).print(table(load(options.out)))


def run(options: Any) -> None:
    how = {} if options.steps is None else {"steps": options.steps}
    task = TASKS[options.task](options.data, **how)
    for name in options.rows or ROWS:
        for seed in map(int, options.seeds.split(",")):
            done = {(each.task, each.row, each.steps, each.lag, each.seed) for each in load(options.out)}
            if (options.task, name, task.steps, options.lag, seed) not in done:
                result = train(name, options.task, task, ROWS[name], options.lag, seed)
                with options.out.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
