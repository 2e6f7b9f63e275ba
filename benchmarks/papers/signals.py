"""Paper B's table: every signal trains the same net, and says what it waits for; critics in a deeper one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.box import MARKDOWN
from rich.table import Table
from torch import Tensor, nn

from stepahead.pipeline import (
    SignalRecipe,
    blend,
    critic,
    direct_feedback,
    feedback_alignment,
    kickback,
    local_critic,
    probe,
    sobolev,
)

from .entry import Budget, Entry, Figures, Trial, mean_of, of_seeds
from .figures import draw_curves
from .nets import CLASSES, cifar, fcn, images, vgg
from .training import METHODS, Course, Method, Setting, adam, course, guessing, slow_without_labels, train

__all__ = ["ENTRIES"]

LOSS = nn.CrossEntropyLoss()
DEPTH, STEPS = 4, 4000


def _blend(share: float, now: Course) -> SignalRecipe:
    options: Any = adam(now)
    return blend(share, "linear", classes=CLASSES, **options)


def _with_head(make: Any, now: Course) -> SignalRecipe:
    recipe: SignalRecipe = make(loss=LOSS, classes=CLASSES, **adam(now))
    return recipe


def _number(make: Any, now: Course) -> SignalRecipe:
    recipe: SignalRecipe = make(classes=CLASSES, hidden=256, **adam(now))
    return recipe


def _plain(signal: SignalRecipe, now: Course) -> SignalRecipe:
    return signal


NOTHING = "nothing"
SIGNALS: dict[str, tuple[Method, str, str]] = {
    "backprop": (METHODS["backprop"], "the gradient from below", "-"),
    "BP(0.5)": (partial(_blend, 0.5), "the gradient from below", "that gradient"),
    "DNI": (METHODS["DNI"], NOTHING, "the gradient, later"),
    "cDNI": (METHODS["cDNI"], NOTHING, "the gradient, later"),
    "cDNI (softmax error)": (guessing("softmax", labels=True, faster=3), NOTHING, "the gradient, later"),
    "cDNI + prop": (guessing("linear", labels=True, propagates=True), NOTHING, "the gradient, later; into h too"),
    "critic": (partial(_number, critic), NOTHING, "losses, later"),
    "Sobolev critic": (partial(_number, sobolev), NOTHING, "losses and the gradient, later"),
    "Sobolev critic, a classifier": (partial(_with_head, sobolev), NOTHING, "losses and the gradient, later"),
    "local critic": (partial(_with_head, local_critic), NOTHING, "losses, later"),
    "local probe": (partial(_with_head, probe), NOTHING, "the label, at once"),
    "feedback alignment": (partial(_plain, feedback_alignment), "the gradient below the next layer", "-"),
    "direct feedback": (partial(_plain, direct_feedback), "the error at the output", "-"),
    "kickback": (partial(_plain, kickback), "the error at the output", "-"),
    "none": (METHODS["no backprop"], NOTHING, "-"),
}
"""By name: the method, what it waits for, what teaches it."""


def _run(name: str, seed: int, budget: Budget, title: str) -> Figures:
    now = slow_without_labels(course(budget.full, Course(STEPS)), name)
    setting = Setting(layers=fcn(DEPTH), method=SIGNALS[name][0], course=now, seed=seed)
    return train(setting, images(budget.data, True), budget, title)


def _trials(full: bool) -> list[Trial]:
    return [
        Trial(f"{name}, seed {seed}", partial(_run, name, seed)) for seed in range(3 if full else 1) for name in SIGNALS
    ]


def _table(results: Mapping[str, Figures]) -> Table:
    heads = ("signal", "waits for", "taught by", "test error, %", "training loss", "cosine, from the input on")
    drawn = Table(*heads, box=MARKDOWN)
    for name, (_, waits, taught) in SIGNALS.items():
        line = results.get(f"{name}, seed 0")
        if line is not None:
            last = line["quality"][-1] if line["quality"] else []
            cosines = " ".join(f"{cosine:.2f}" for cosine, *_ in last)
            errors = mean_of([each["test_error"] for each in of_seeds(results, name)])
            drawn.add_row(name, waits, taught, errors, f"{line['train_loss']:.4f}", cosines)
    return drawn


def _head(h: Tensor) -> nn.Module:
    """Return a critic's classifier: a convolution, then the mean over the image."""
    conv = nn.Conv2d(h.shape[1], h.shape[1], 3, padding=1, bias=False)
    rest = [nn.BatchNorm2d(h.shape[1], track_running_stats=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(conv, *rest, nn.Linear(h.shape[1], CLASSES))


CRITICS: dict[str, tuple[Method, str]] = {
    "backprop": (METHODS["backprop"], "94.3"),
    "none": (METHODS["no backprop"], "54.5"),
    "DNI": (guessing("conv", labels=False, depth=1, kernel=3), "79.2"),
    "cDNI": (guessing("conv", labels=True, depth=1, kernel=3), ""),
    "critic": (partial(_number, critic), "93.2"),
    "Sobolev critic, a classifier": (partial(_with_head, partial(sobolev, head=_head)), "93.5"),
    "local critic": (partial(_with_head, partial(local_critic, head=_head)), "92.4 (backprop 93.9)"),
    "local probe": (partial(_with_head, partial(probe, head=_head)), ""),
}
"""By name: the method, and the accuracy that was reported for a deep VGG with three cuts (Sobolev training; the local
critic: local critic training)."""
VGG_STEPS = 2000


def _run_vgg(name: str, seed: int, budget: Budget, title: str) -> Figures:
    setting = Setting(
        layers=vgg(64 if budget.full else 16),
        method=CRITICS[name][0],
        course=course(budget.full, Course(VGG_STEPS, 1e-3, 128, points=10), Course(80_000, 1e-3, 128)),
        seed=seed,
        blocks=4,
    )
    return train(setting, cifar(budget.data, False), budget, title)


def _critic_trials(full: bool) -> list[Trial]:
    seeds = range(3 if full else 1)
    return [Trial(f"{name}, seed {seed}", partial(_run_vgg, name, seed)) for seed in seeds for name in CRITICS]


def _critic_table(results: Mapping[str, Figures]) -> Table:
    drawn = Table("signal", "test accuracy, %", "reported, VGG with 3 cuts", box=MARKDOWN)
    for name, (_, reported) in CRITICS.items():
        if results.get(f"{name}, seed 0"):
            drawn.add_row(name, mean_of([100 - each["test_error"] for each in of_seeds(results, name)]), reported)
    return drawn


ENTRIES = {
    "signals": Entry("MNIST, 4 layers: every signal trains the same net", _trials, _table, draw_curves),
    "critics": Entry("CIFAR-10, six convolutions in four blocks", _critic_trials, _critic_table, draw_curves),
}
