"""What a stage costs beside the bare layers, and what each shape of predictor adds: time, and FLOPs.

    python -m benchmarks.cost

Everything runs in one process on one core, in turn (A B A B ..), and medians are compared: absolute times mean little.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

from stepahead.pipeline import (
    TAX,
    USEFUL,
    Activation,
    Gradient,
    GradientKind,
    Group,
    Recipe,
    Signal,
    Stage,
    cut_model,
    synthetic,
)

CLASSES = 10
adam = partial(Adam, lr=1e-4)


class Given(Signal):
    """A gradient that is there already: what a stage costs without any predictor."""

    def __init__(self, delta: Tensor) -> None:
        super().__init__()
        self.delta = delta

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        return self.delta


class TransformerBlock(nn.TransformerEncoderLayer):
    """Torch's own, causal."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, src: Tensor, *args: Any, **options: Any) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(src.shape[1])
        return super().forward(src, src_mask=mask, is_causal=True)


@dataclass(frozen=True)
class Family:
    """A kind of group, and the predictors that suit its activations."""

    name: str
    layer: Callable[[], nn.Module]
    layers: int
    shape: tuple[int, ...]
    """Of an activation."""
    label: tuple[int, ...]
    predictors: dict[str, dict[str, Any]]


FAMILIES = [
    Family(
        name="dense, 4 x 512",
        layer=lambda: nn.Sequential(nn.Linear(512, 512), nn.ReLU()),
        layers=4,
        shape=(64, 512),
        label=(64,),
        predictors={
            "linear": {"predictor": "linear"},
            "linear, every 4th batch": {"predictor": "linear", "every": 4},
            "linear, a quarter of the rows": {"predictor": "linear", "rows": 0.25},
            "linear, a quarter, every 4th": {"predictor": "linear", "rows": 0.25, "every": 4},
            "low-rank 64": {"predictor": "low-rank", "rank": 64},
            "low-rank 64, every 4th": {"predictor": "low-rank", "rank": 64, "every": 4},
            "mlp 1 x 512": {"predictor": "mlp", "hidden": 512},
            "mlp 2 x 1024, BatchNorm": {"predictor": "mlp", "hidden": 1024, "depth": 2, "norm": "batch"},
        },
    ),
    Family(
        name="conv, 3 x 32 channels 3x3",
        layer=lambda: nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        layers=3,
        shape=(32, 32, 12, 12),
        label=(32,),
        predictors={
            "conv 1x1": {"predictor": "conv", "depth": 0, "kernel": 1},
            "conv 3x3": {"predictor": "conv", "depth": 0, "kernel": 3},
            "conv 3x3, a quarter, every 4th": {
                "predictor": "conv",
                "depth": 0,
                "kernel": 3,
                "rows": 0.25,
                "every": 4,
            },
            "conv 5x5, 1 hidden": {"predictor": "conv", "depth": 1},
        },
    ),
    Family(
        name="transformer, 1 block of 128",
        layer=lambda: TransformerBlock(128),
        layers=1,
        shape=(8, 32, 128),
        label=(8, 32),
        predictors={
            "linear": {"predictor": "linear"},
            "token 256": {"predictor": "token", "hidden": 256},
            "token 256, 4 ahead": {"predictor": "token", "hidden": 256, "ahead": 4},
            "token 256, a quarter, every 4th": {"predictor": "token", "hidden": 256, "rows": 0.25, "every": 4},
        },
    ),
]


@dataclass(frozen=True)
class Row:
    """One stage beside the bare layers of its group."""

    group: str
    predictor: str
    bare_ms: float
    stage_ratio: float
    """Time of `step_ahead`, and of `learn` where there is a predictor, over the bare layers: median of the pairs."""
    spread: tuple[float, float]
    """The ratio's quartiles."""
    tax: float | None
    """Time in the predictor over useful time."""
    flops: float | None
    """The predictor's FLOPs over the group's."""


class Timer:
    """Adds up the seconds of every part of a step."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


class Bench:
    """A middle stage that is fed the same batch again and again, and the same layers bare."""

    def __init__(self, family: Family, recipe: dict[str, Any] | None) -> None:
        torch.manual_seed(0)
        self.data, self.label = torch.randn(family.shape), torch.randint(CLASSES, family.label)
        self.delta = torch.randn(family.shape) / self.label.numel()
        self.group, self.bare = (self._group(family) for _ in range(2))
        signal = synthetic(classes=CLASSES, optimizer=adam, **recipe) if recipe else lambda h, y: Given(self.delta)
        made = Recipe(loss=nn.CrossEntropyLoss(), signal=signal, optimizer=adam)
        self.stage: Stage = made.stage(self.group, 1, 3, self.data, self.label)
        self.optimizer = adam(self.bare.parameters())

    @staticmethod
    def _group(family: Family) -> Group:
        torch.manual_seed(1)
        return cut_model([family.layer() for _ in range(family.layers)], 1)[0]

    def bare_step(self) -> None:
        h_in = self.data.detach().requires_grad_()
        torch.autograd.backward(self.bare(h_in), self.delta)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step_ahead(self) -> None:
        message = Activation(edge="0>1", step=self.stage.step, tensors=(self.data,), label=self.label)
        for _ in self.stage.step_ahead(message):
            pass

    def learn(self) -> None:
        step = self.stage.step - 1
        for _ in self.stage.learn(Gradient(edge="1>2", step=step, tensors=(self.delta,), kind=GradientKind.TARGET)):
            pass

    def stage_step(self) -> None:
        self.step_ahead()
        self.learn()


def measure(family: Family, name: str, recipe: dict[str, Any] | None, pairs: int) -> Row:
    bench = Bench(family, recipe)
    warm_up = 10
    bare: list[float] = []
    staged: list[float] = []
    for _ in range(warm_up + pairs):
        if recipe:  # four at a time: a predictor that learns every 4th batch is measured over whole rounds
            bare.append(seconds(bench.bare_step, 4))
            staged.append(seconds(bench.stage_step, 4))
        else:
            bare.append(seconds(bench.bare_step))
            staged.append(seconds(bench.step_ahead))
            bench.learn()
    ratios = [after / before for after, before in zip(staged[warm_up:], bare[warm_up:], strict=True)]
    quartiles = quantiles(ratios, n=4)
    return Row(
        group=family.name,
        predictor=name,
        bare_ms=1000 * median(bare[warm_up:]) / (4 if recipe else 1),
        stage_ratio=median(ratios),
        spread=(quartiles[0], quartiles[2]),
        tax=time_tax(bench, pairs) if recipe else None,
        flops=flop_tax(bench, recipe) if recipe else None,
    )


def time_tax(bench: Bench, rounds: int) -> float:
    """Return the time of guessing and learning over that of the layers and their optimizer, in the same steps."""
    timer = bench.stage.span = Timer()
    taxes: list[float] = []
    for _ in range(rounds):
        seconds(bench.stage_step, 4)
        spent = timer.take()
        taxes.append(sum(spent.get(part, 0.0) for part in TAX) / sum(spent[part] for part in USEFUL))
    return median(taxes)


def seconds(step: Callable[[], None], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        step()
    return time.perf_counter() - start


def flop_tax(bench: Bench, recipe: dict[str, Any]) -> float:
    """Return the FLOPs of guessing and learning over those of the bare layers."""
    every = recipe.get("every", 1)
    while bench.stage.step % every:
        bench.stage_step()
    with FlopCounterMode(display=False) as bare:
        bench.bare_step()
    with FlopCounterMode(display=False) as whole:
        for _ in range(every):
            bench.stage_step()
    ratio: float = whole.get_total_flops() / every / bare.get_total_flops()
    return ratio - 1


def table(rows: list[Row]) -> Table:
    result = Table("group", "predictor", "bare ms", "stage / bare", "tax, time", "tax, FLOPs", box=MARKDOWN)
    for row in rows:
        extra = ["", ""] if row.tax is None or row.flops is None else [f"{row.tax:.0%}", f"{row.flops:.0%}"]
        ratio = f"{row.stage_ratio:.3f} [{row.spread[0]:.3f}, {row.spread[1]:.3f}]"
        result.add_row(row.group, row.predictor, f"{row.bare_ms:.2f}", ratio, *extra)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="how often each pair is measured (default: 60)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "cost.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for family in FAMILIES:
        for name, recipe in {"none": None, **family.predictors}.items():
            rows.append(measure(family, name, recipe, options.pairs))
            Console(stderr=True).print(f"{family.name}, {name}: {rows[-1].stage_ratio:.3f}")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    options.out.write_text(json.dumps({"versions": versions, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    Console(width=140, markup=False).print(table(rows))


if __name__ == "__main__":
    main()
