"""Training as in paper A: Adam, a rate that falls twice, each layer a stage of its own; the papers' lag of one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from math import isnan

from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from stepahead.launch import Dataset, Track, minibatches
from stepahead.pipeline import (
    Group,
    InputRecipe,
    Recipe,
    Reference,
    SignalRecipe,
    Stage,
    StepReport,
    accuracy,
    assemble,
    cut_model,
    layers_of,
    locked,
    silent,
    synthetic,
)

from .entry import Budget, Figures
from .nets import CLASSES, Layers

__all__ = [
    "METHODS",
    "Course",
    "Method",
    "Setting",
    "adam",
    "course",
    "falling",
    "guessing",
    "slow_without_labels",
    "test_error",
    "train",
]


@dataclass(frozen=True)
class Course:
    """How long and how fast."""

    steps: int
    rate: float = 3e-4
    batch: int = 256
    points: int = 40
    """Readings of the test error on the way."""

    @property
    def drops(self) -> list[int]:
        """The steps after which the rate is a tenth."""
        return [self.steps * 60 // 100, self.steps * 80 // 100]


SLOW = 3e-5
"""Paper A's rate; in short runs too that of linear layers without labels: guesses cannot follow faster ones."""
PAPER_A = Course(500_000, SLOW)


def course(full: bool, short: Course, whole: Course = PAPER_A) -> Course:
    """Return a paper's own course, or the short one."""
    return whole if full else short


def slow_without_labels(now: Course, method: str) -> Course:
    """Return the course, at paper A's rate for a method without labels."""
    return replace(now, rate=SLOW) if method == "DNI" else now


Method = Callable[[Course], SignalRecipe]
"""Makes a signal for a course."""


def adam(now: Course, faster: float = 1.0) -> dict[str, object]:
    """Return the optimizer and its schedule, as options of a signal, at the course's rate or so many times that."""
    return {"optimizer": partial(Adam, lr=now.rate * faster), "lr_schedule": partial(falling, now.drops)}


def _guessing(kind: str, labels: bool, faster: float, options: dict[str, object], now: Course) -> SignalRecipe:
    classes, learns = CLASSES if labels else None, adam(now, faster)
    return synthetic(kind, classes=classes, **learns, **options)  # type: ignore[arg-type]


def guessing(kind: str, *, labels: bool, faster: float = 1.0, **options: object) -> Method:
    """Return a method: synthetic gradients of one kind of predictor, which may learn faster than the layers."""
    return partial(_guessing, kind, labels, faster, options)


def _fixed(signal: SignalRecipe, now: Course) -> SignalRecipe:
    return signal


def _without_labels(now: Course) -> SignalRecipe:
    """Paper A's predictor in its own course; else a quarter as wide, for it costs more than the net.

    It then learns ten times as fast as the layers.
    """
    size, faster = (1024, 1.0) if now == PAPER_A else (256, 10.0)
    return guessing("mlp", labels=False, faster=faster, hidden=size, depth=2, norm="batch")(now)


METHODS: dict[str, Method] = {
    "no backprop": partial(_fixed, silent),
    "backprop": partial(_fixed, locked),
    "DNI": _without_labels,
    "cDNI": guessing("linear", labels=True),
}
"""For nets of linear layers."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training run."""

    layers: Layers
    method: Method
    course: Course
    seed: int = 0
    blocks: int | None = None
    """Into how many groups the layers are cut; each by itself unless given."""
    at: tuple[int, ...] = ()
    """Or before which layers."""
    chance: float = 1.0
    inputs: InputRecipe | None = None


@dataclass
class Progress:
    """How far a run has come."""

    stages: list[Stage]
    loss: float = 0.0
    """The mean over the last hundred batches or so."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Steps and test error."""
    quality: list[list[list[float]]] = field(default_factory=list)
    """Of each interface that guesses, at the same readings."""

    def take(self, report: StepReport) -> None:
        """Take in what a step says."""
        if not isnan(report.loss):  # of a batch that the last stage left out
            self.loss += (report.loss - self.loss) / 100


def _begin(setting: Setting, data: Dataset) -> Progress:
    now, layers = setting.course, setting.layers
    recipe = Recipe(
        loss=nn.CrossEntropyLoss(),
        signal=setting.method(now),
        optimizer=partial(Adam, lr=now.rate),
        lr_schedule=partial(falling, now.drops),
        seed=setting.seed,
        chance=setting.chance,
        inputs=setting.inputs,
    )
    if setting.at:
        groups = cut_model(layers, at=setting.at, seed=setting.seed)
    else:
        groups = cut_model(layers, setting.blocks or len(layers_of(layers)), seed=setting.seed)
    return Progress(list(assemble(groups, (data.train[0][: now.batch], data.train[1][: now.batch]), recipe)))


def train(setting: Setting, data: Dataset, budget: Budget, title: str, *, keep: list[Group] | None = None) -> Figures:
    """Train, and return the test error, the curve of it, and how good the guesses were all along.

    Args:
        keep: Where to put the trained groups.
    """
    now, unfinished = setting.course, budget.unfinished
    what = (now, setting.seed, setting.chance, setting.blocks, setting.at)
    run = unfinished.load(what, partial(_begin, setting, data))
    reference, every = Reference(run.stages, lag=1), max(now.steps // now.points, 1)
    batches = islice(minibatches(data.train, now.batch, seed=setting.seed), reference.step, None)
    steps = reference.train(batches, steps=now.steps - reference.step)
    for report in Track(steps, total=now.steps, title=title, every_seconds=60):
        run.take(report)
        if (report.step + 1) % every == 0:
            run.curve.append((report.step + 1, round(test_error(reference, data), 3)))
            run.quality.append(_quality(reference))
        unfinished.save(run)
    if keep is not None:
        keep += [stage.group for stage in run.stages]
    return {
        "test_error": test_error(reference, data),
        "train_loss": run.loss,
        "steps": now.steps,
        "curve": run.curve,
        "quality": run.quality,
    }


def test_error(reference: Reference, data: Dataset) -> float:
    """Return the error on the test images, in percent."""
    parts = zip(data.test[0].split(2000), data.test[1].split(2000), strict=True)
    return 100 * (1 - reference.evaluate(parts, {"accuracy": accuracy})["accuracy"])


def _quality(reference: Reference) -> list[list[float]]:
    """Return cosine, sign error and relative error at each interface that guesses."""
    readings = [stage.statistics().quality for stage in reference.stages]
    return [
        [round(reading.cosine, 3), round(reading.sign_error, 3), round(reading.relative_error, 3)]
        for reading in readings
        if reading is not None
    ]


def falling(drops: Sequence[int], optimizer: Optimizer) -> MultiStepLR:
    """Return a schedule: a tenth of the rate after each drop."""
    return MultiStepLR(optimizer, list(drops), gamma=0.1)
