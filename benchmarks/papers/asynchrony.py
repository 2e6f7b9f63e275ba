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
from .training import METHODS, Course, Setting, adam, course, slow_without_labels, train

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
STEPS, MORE_STEPS = 8_000, 16_000
MORE_UP_TO = {"sporadic": 0.2, "unlocked": 0.5}
"""With labels, the chances up to which short runs are twice as long: layers step so rarely."""
LENGTHS = {False: (2_000, 4_000, 8_000, 16_000), True: (12_500, 25_000, 250_000, 500_000)}
"""Steps after which the error is told, in a short and in a full run: of the paper's those with a reading."""


def _inputs(now: Course, full: bool) -> InputRecipe:
    """Return what guesses inputs, at the rate of guesses: of the size of paper A's predictors in a full run."""
    size = {"hidden": 1024, "depth": 2} if full else {"hidden": 256, "depth": 1}
    return synthetic_inputs(optimizer=partial(Adam, lr=now.rate), lr_schedule=adam(now)["lr_schedule"], **size)  # type: ignore[arg-type]


def _steps(name: str, method: str, chance: float) -> int:
    return MORE_STEPS if method == "cDNI" and chance <= MORE_UP_TO[name] else STEPS


def _run(name: str, method: str, chance: float, seed: int, budget: Budget, title: str) -> Figures:
    now = course(budget.full, Course(_steps(name, method, chance)))
    setting = Setting(
        layers=fcn(DEPTH),
        method=METHODS[method],
        course=slow_without_labels(now, method),
        seed=seed,
        chance=chance,
        inputs=_inputs(now, budget.full) if name == "unlocked" else None,
    )
    return train(setting, images(budget.data, True), budget, title)


def _trials(name: str, full: bool) -> list[Trial]:
    chances = CHANCES[name]
    return [
        Trial(f"{method}, p={chance:g}, seed {seed}", partial(_run, name, method, chance, seed))
        for method in ("cDNI", "DNI")
        for chance in chances
        for seed in range(3 if full else 1)
    ]


def _table(name: str, results: Mapping[str, Figures]) -> Table:
    """Return the error over p, after several lengths of training."""
    lengths = LENGTHS[max((line["steps"] for line in results.values()), default=0) > MORE_STEPS]
    heads = [f"{length:,}" for length in lengths]
    drawn = Table("signal", "p", f"{heads[0]} steps", *heads[1:], "paper, at the end", box=MARKDOWN)
    for method in ("cDNI", "DNI"):
        for chance in CHANCES[name]:
            line = results.get(f"{method}, p={chance:g}, seed 0")
            if line is not None:
                said = PAPER[name][method] if chance == CHANCES[name][0] else ""
                drawn.add_row(method, f"{chance:g}", *(_error_after(line, length) for length in lengths), said)
    return drawn


def _error_after(line: Figures, length: int) -> str:
    """Return the error after so many steps, if it was read then."""
    errors = dict(map(tuple, line["curve"])) | {line["steps"]: line["test_error"]}
    return f"{errors[length]:.2f}" if length in errors else "-"


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
