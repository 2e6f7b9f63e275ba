"""Train a deep network on handwritten digits in four stages, locked and then decoupled, and compare.

python -m examples.digits
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Adam

from stepahead.launch import Dataset, Track, digits, minibatches
from stepahead.pipeline import Recipe, Reference, accuracy, assemble, cut_model, locked, synthetic
from stepahead.pipeline.signals import SignalRecipe

STEPS, BATCH, STAGES, WIDTH, CLASSES = 800, 128, 4, 256, 10


def model() -> list[Callable[[], nn.Module]]:
    """Eight hidden layers and a classifier; as functions, so that whoever runs a layer builds it."""
    first = partial(hidden_layer, 64, WIDTH)
    return [first, *[partial(hidden_layer, WIDTH, WIDTH)] * 7, partial(nn.Linear, WIDTH, CLASSES)]


def hidden_layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


def train(name: str, signal: SignalRecipe, data: Dataset, console: Console) -> tuple[Reference, float]:
    """Train the model with a signal, and return its stages and the test accuracy."""
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=signal, optimizer=partial(Adam, lr=1e-3))
    example = data.train[0][:BATCH], data.train[1][:BATCH]
    reference = Reference(assemble(cut_model(model(), STAGES), example, recipe))
    track = Track(
        reference.train(minibatches(data.train, BATCH), steps=STEPS), total=STEPS, title=f"{name:<10}", console=console
    )
    result = 0.0
    for report in track:
        if (report.step + 1) % 100 == 0:
            result = reference.evaluate([data.test], {"accuracy": accuracy})["accuracy"]
            track.note(accuracy=result)
    return reference, result


def main() -> None:
    torch.set_num_threads(1)  # small matrices: more threads only get in each other's way
    console = Console()
    data = digits()
    _, backprop = train("backprop", locked, data, console)
    signal = synthetic("linear", classes=CLASSES, optimizer=partial(Adam, lr=1e-3))
    reference, decoupled = train("decoupled", signal, data, console)
    console.print(f"\nTest accuracy: backprop {backprop:.1%}, decoupled {decoupled:.1%}. Its stages:")
    console.print(stage_table(reference))


def stage_table(reference: Reference) -> Table:
    table = Table("stage", "layers", "steps on", "cosine", "relative error", "gradient norm")
    for stage in reference.stages:
        now = stage.statistics()
        quality = [f"{now.quality.cosine:.2f}", f"{now.quality.relative_error:.2f}"] if now.quality else ["-", "-"]
        signal = "true gradient" if stage.is_last else "synthetic gradient"
        table.add_row(str(stage.index), stage.group.title, signal, *quality, f"{now.gradient_norm or 0.0:.4f}")
    return table


if __name__ == "__main__":
    main()
