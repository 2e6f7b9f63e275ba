"""Test error of decoupled training beside backprop: MNIST, fully connected, one stage per layer.

    python -m benchmarks.feedforward.accuracy --data DIR

DIR holds MNIST's four idx files, or a folder `mnist` with them. A finished run is not run again: the results
so far are in the file that --out names.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from stepahead.launch import Dataset, Track, minibatches, mnist
from stepahead.pipeline import (
    Recipe,
    Reference,
    SignalRecipe,
    accuracy,
    assemble,
    cut_model,
    layers_of,
    locked,
    synthetic,
)

STEPS, BATCH, WIDTH, CLASSES, RATE = 4000, 256, 256, 10, 3e-4
DEPTHS, SEEDS = (4, 8), (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One training run and what came of it."""

    signal: str
    depth: int
    seed: int
    lag: int
    test_error: float
    train_loss: float
    cosines: list[float]
    seconds: float


def lr_schedule(optimizer: Optimizer) -> MultiStepLR:
    return MultiStepLR(optimizer, [STEPS * 60 // 100, STEPS * 85 // 100], gamma=0.1)


SIGNALS: dict[str, tuple[SignalRecipe, int]] = {
    "backprop": (locked, 1),
    "cDNI linear": (synthetic("linear", classes=CLASSES, optimizer=partial(Adam, lr=RATE), lr_schedule=lr_schedule), 2),
}


def model(depth: int) -> list[Callable[[], nn.Module]]:
    hidden = [partial(hidden_layer, 784 if index == 0 else WIDTH) for index in range(depth)]
    return [*hidden, partial(nn.Linear, WIDTH, CLASSES)]


def hidden_layer(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())


def train(name: str, depth: int, seed: int, data: Dataset) -> Run:
    signal, lag = SIGNALS[name]
    layers = model(depth)
    recipe = Recipe(
        loss=nn.CrossEntropyLoss(), signal=signal, optimizer=partial(Adam, lr=RATE), lr_schedule=lr_schedule, seed=seed
    )
    example = data.train[0][:BATCH], data.train[1][:BATCH]
    reference = Reference(assemble(cut_model(layers, len(layers_of(layers)), seed=seed), example, recipe), lag=lag)
    start = time.monotonic()
    steps = reference.train(minibatches(data.train, BATCH, seed=seed), steps=STEPS)
    loss = 0.0
    for report in Track(steps, total=STEPS, title=f"{name}, {depth} layers, seed {seed}", every_seconds=30):
        loss += (report.loss - loss) / 100
    test = reference.evaluate([data.test], {"accuracy": accuracy})
    qualities = [stage.statistics().quality for stage in reference.stages]
    return Run(
        signal=name,
        depth=depth,
        seed=seed,
        lag=lag,
        test_error=100 * (1 - test["accuracy"]),
        train_loss=loss,
        cosines=[round(quality.cosine, 3) for quality in qualities if quality],
        seconds=round(time.monotonic() - start, 1),
    )


def load(path: Path) -> list[Run]:
    return [Run(**run) for run in json.loads(path.read_text())["runs"]] if path.exists() else []


def save(path: Path, runs: list[Run]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    path.write_text(json.dumps({"versions": versions, "runs": [asdict(run) for run in runs]}, indent=1) + "\n")


def table(runs: list[Run]) -> Table:
    headings = ("hidden layers", "signal", "test error, mean", "each seed", "s.d.", "mean cosine", "seconds")
    result = Table(*headings, box=MARKDOWN)
    for depth, name in product(DEPTHS, SIGNALS):
        chosen = [run for run in runs if (run.depth, run.signal) == (depth, name)]
        errors = [run.test_error for run in chosen]
        cosines = [cosine for run in chosen for cosine in run.cosines]
        if chosen:
            result.add_row(
                str(depth),
                name,
                f"{mean(errors):.2f} %",
                " ".join(f"{error:.2f}" for error in errors),
                f"{stdev(errors):.2f}" if len(errors) > 1 else "",
                f"{mean(cosines):.2f}" if cosines else "",
                f"{sum(run.seconds for run in chosen):.0f}",
            )
    return result


def pending(runs: list[Run]) -> Iterator[tuple[int, str, int]]:
    done = {(run.depth, run.signal, run.seed) for run in runs}
    return (key for key in product(DEPTHS, SIGNALS, SEEDS) if key not in done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "accuracy.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data / "mnist" if (options.data / "mnist").is_dir() else options.data
    images = mnist(folder)
    data = Dataset((images.train[0].flatten(1), images.train[1]), (images.test[0].flatten(1), images.test[1]))
    runs = load(options.out)
    for depth, name, seed in pending(runs):
        runs.append(train(name, depth, seed, data))
        save(options.out, runs)
    Console(width=140).print(table(runs))


if __name__ == "__main__":
    main()
