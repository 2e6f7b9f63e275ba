"""Paper A, asynchrony: layers that step with a probability p, and layers that run on guesses of their inputs too."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from rich.box import MARKDOWN
from rich.table import Table
from torch.optim import Adam

from stepahead.pipeline import InputRecipe, synthetic_inputs

from .entry import Budget, Entry, Figures, Trial
from .figures import draw_curves
from .nets import fcn, images
from .training import METHODS, Course, Setting, adam, course, train

__all__ = ["ENTRIES"]

CHANCES = {"sporadic": (0.05, 0.1, 0.2, 0.5, 1.0), "unlocked": (0.1, 0.2, 0.5, 1.0)}
PAPER = {
    "sporadic": {
        "DNI": "2.2 for p >= 0.3, 2.5 for 0.1 to 0.2, 4 to 6 below 0.05",
        "cDNI": "about 2.0, from p = 0.05 on",
    },
    "unlocked": {"DNI": "2.2 to 2.4 for p >= 0.2", "cDNI": "2.0 to 2.5"},
}
DEPTH = 4
STEPS = 8000


def _inputs(now: Course, full: bool) -> InputRecipe:
    """Return what guesses inputs: of the size of paper A's predictors in a full run."""
    size = {"hidden": 1024, "depth": 2} if full else {"hidden": 256, "depth": 1}
    return synthetic_inputs(optimizer=partial(Adam, lr=now.rate), lr_schedule=adam(now)["lr_schedule"], **size)  # type: ignore[arg-type]


def _run(name: str, method: str, chance: float, seed: int, budget: Budget, title: str) -> Figures:
    now = course(budget.full, Course(STEPS))
    setting = Setting(
        layers=fcn(DEPTH),
        method=METHODS[method],
        course=now,
        seed=seed,
        chance=chance,
        inputs=_inputs(now, budget.full) if name == "unlocked" else None,
    )
    return train(setting, images(budget.data, True), title)


def _trials(name: str, full: bool) -> list[Trial]:
    chances = CHANCES[name]
    return [
        Trial(f"{method}, p={chance:g}, seed {seed}", partial(_run, name, method, chance, seed))
        for method in ("cDNI", "DNI")
        for chance in chances
        for seed in range(3 if full else 1)
    ]


def _table(name: str, results: Mapping[str, Figures]) -> Table:
    """Return the error over p, after several shares of the run."""
    drawn = Table("signal", "p", "1/8 of the steps", "1/4", "1/2", "all", "paper, at the end", box=MARKDOWN)
    for method in ("cDNI", "DNI"):
        for chance in CHANCES[name]:
            key = f"{method}, p={chance:g}, seed 0"
            if key in results:
                curve = dict(map(tuple, results[key]["curve"]))
                last = max(curve)
                early = [min(curve, key=lambda step: abs(step - share * last)) for share in (1 / 8, 1 / 4, 1 / 2, 1)]
                said = PAPER[name][method] if chance == CHANCES[name][0] else ""
                drawn.add_row(method, f"{chance:g}", *(f"{curve[step]:.2f}" for step in early), said)
    return drawn


ENTRIES = {
    "sporadic": Entry(
        "MNIST, 4 layers, each steps with probability p",
        partial(_trials, "sporadic"),
        partial(_table, "sporadic"),
        draw_curves,
    ),
    "unlocked": Entry(
        "MNIST, 4 layers on guesses of their inputs, each runs with probability p",
        partial(_trials, "unlocked"),
        partial(_table, "unlocked"),
        draw_curves,
    ),
}
