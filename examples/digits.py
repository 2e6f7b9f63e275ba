"""Train a deep network on handwritten digits in four stages, locked and then decoupled, and compare.

python -m examples.digits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from stepahead.launch import Dataset, Track, digits, minibatches
from stepahead.pipeline import Recipe, Reference, SignalRecipe, accuracy, assemble, cut_model, locked, synthetic

STEPS, BATCH, STAGES, WIDTH, CLASSES = 800, 128, 4, 256, 10


def model() -> list[Callable[[], nn.Module]]:
    """Eight hidden layers and a classifier; as functions, so that whoever runs a layer builds it."""
    first = partial(hidden_layer, 64, WIDTH)
    return [first, *[partial(hidden_layer, WIDTH, WIDTH)] * 7, partial(nn.Linear, WIDTH, CLASSES)]


def hidden_layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


def lr_schedule(optimizer: Optimizer) -> CosineAnnealingLR:
    return CosineAnnealingLR(optimizer, STEPS)


@dataclass
class Result:
    """What came of a run."""

    reference: Reference
    accuracy: float = 0.0
    cosines: list[list[float | None]] = field(default_factory=list[list[float | None]])
    """Of each stage's predictor, every hundred steps."""


def train(name: str, signal: SignalRecipe, data: Dataset, console: Console) -> Result:
    """Train the model with a signal, with a look at the test set every hundred steps."""
    recipe = Recipe(
        loss=nn.CrossEntropyLoss(), signal=signal, optimizer=partial(Adam, lr=1e-3), lr_schedule=lr_schedule
    )
    example = data.train[0][:BATCH], data.train[1][:BATCH]
    result = Result(Reference(assemble(cut_model(model(), STAGES), example, recipe)))
    reports = result.reference.train(minibatches(data.train, BATCH), steps=STEPS)
    track = Track(reports, total=STEPS, title=f"{name:<9}", console=console)
    for report in track:
        if (report.step + 1) % 100 == 0:
            result.accuracy = result.reference.evaluate([data.test], {"accuracy": accuracy})["accuracy"]
            track.note(accuracy=result.accuracy)
            qualities = [stage.statistics().quality for stage in result.reference.stages]
            result.cosines.append([quality.cosine if quality else None for quality in qualities])
    return result


def main() -> None:
    torch.set_num_threads(1)  # small matrices: more threads only get in each other's way
    console = Console()
    data = digits()
    backprop = train("backprop", locked, data, console)
    signal = synthetic("linear", classes=CLASSES, optimizer=partial(Adam, lr=1e-3), lr_schedule=lr_schedule)
    decoupled = train("decoupled", signal, data, console)
    console.print(f"\nTest accuracy: backprop {backprop.accuracy:.1%}, decoupled {decoupled.accuracy:.1%}.")
    console.print("How near the synthetic gradients came to those that arrived later (cosine):")
    console.print(stage_table(decoupled))


def stage_table(result: Result) -> Table:
    """One row for each stage; its predictor early and late: once the loss is gone, what is left is noise."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("stage", "layers", "steps on", "step 100", f"step {STEPS}"):
        table.add_column(heading, no_wrap=True)
    for stage, early, late in zip(result.reference.stages, result.cosines[0], result.cosines[-1], strict=True):
        cosines = ["" if cosine is None else f"{cosine:.2f}" for cosine in (early, late)]
        table.add_row(str(stage.index), stage.group.title, "the loss" if stage.is_last else "synthetic", *cosines)
    return table


if __name__ == "__main__":
    main()
