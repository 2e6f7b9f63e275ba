"""Paper B's theory on small problems: convergence, equilibria, the bound, the loss that a guess stands for.

Sampled sets of data are trained side by side, as one more dimension of every tensor. The guess is a linear map of the
activation and the label (or, for the log loss, a sigmoid of it); below it the net steps on it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import torch
from rich.box import MARKDOWN
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from .entry import ABOUT, Budget, Entry, Figures, Trial, counted
from .figures import draw_gaps, draw_ratios

__all__ = ["ENTRIES"]

KINDS, LOSSES, SIZES, DEPTHS = ("separable", "noisy", "random", "noisyrandom"), ("mse", "log"), (2, 100), (0, 10)
SETS = {0: 10, 10: 5}
"""How many sets of data are sampled, of shallow and of deep nets; 10 of each in a full run."""
WIDTH, STEPS, LONG = 32, 6_000, 20_000
"""Shallow nets on few points take the long course in a short run too: it costs seconds."""
ROUNDING = 1e-6
"""Of a loss, in single precision."""


def sample(kind: str, size: int, sets: int) -> tuple[Tensor, Tensor]:
    """Return points and labels 0 and 1: [sets, samples, size] and [sets, samples, 1]."""
    generator = torch.Generator().manual_seed(KINDS.index(kind) * 1000 + size)
    samples = 100 if size == 2 else 500
    x = torch.randn(sets, samples, size, generator=generator)
    direction = torch.randn(sets, size, 1, generator=generator)
    y = (x @ direction > 0).float()
    flipped = torch.rand(y.shape, generator=generator) < 0.1
    drawn = (torch.rand(y.shape, generator=generator) < 0.5).float()
    noisy = torch.where(flipped, 1 - y, y)
    mixed = torch.where(torch.rand(y.shape, generator=generator) < 0.5, noisy, drawn)
    return x, {"separable": y, "noisy": noisy, "random": drawn, "noisyrandom": mixed}[kind]


def losses(name: str, p: Tensor, y: Tensor) -> Tensor:
    """Return each set's loss."""
    each = (p - y).square() if name == "mse" else F.binary_cross_entropy_with_logits(p, y, reduction="none")
    return each.mean(dim=(1, 2))


@dataclass
class Chain:
    """Linear layers in a row, for all sets at once."""

    weights: list[Tensor]
    biases: list[Tensor]

    @classmethod
    def make(cls, sets: int, widths: list[int]) -> Chain:
        generator = torch.Generator().manual_seed(0)
        weights = [
            (torch.randn(sets, i, o, generator=generator) * i**-0.5).requires_grad_() for i, o in pairwise(widths)
        ]
        return cls(weights, [torch.zeros(sets, 1, width, requires_grad=True) for width in widths[1:]])

    def __call__(self, h: Tensor, layers: slice) -> Tensor:
        for weight, bias in zip(self.weights[layers], self.biases[layers], strict=True):
            h = torch.baddbmm(bias, h, weight)
        return h

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]


class Guess:
    """A guess of the gradient at h, linear in h and the label; as a sigmoid of h it can follow the log loss."""

    def __init__(self, sets: int, width: int, *, sigmoid: bool = False) -> None:
        self.sigmoid = sigmoid
        self.a = torch.zeros(sets, width, width, requires_grad=True)
        self.b = torch.zeros(sets, 1, width, requires_grad=True)
        self.c = torch.zeros(sets, 1, width, requires_grad=True)

    def __call__(self, h: Tensor, y: Tensor) -> Tensor:
        bent = torch.baddbmm(self.c, h, self.a)
        return (torch.sigmoid(bent) if self.sigmoid else bent) + y @ self.b

    @property
    def parameters(self) -> list[Tensor]:
        return [self.a, self.b, self.c]


def descend(kind: str, size: int, loss: str, hidden: int, guess: str, budget: Budget, title: str) -> Figures:
    """Train by backprop or on a guess in the middle (of a shallow net: at its output), and return each set's loss."""
    sets, steps = (10, LONG) if budget.full else (SETS[hidden], LONG if size == 2 and not hidden else STEPS)
    x, y = sample(kind, size, sets)
    chain = Chain.make(sets, [size, *[WIDTH] * hidden, 1])
    middle = max(hidden // 2, 1)
    width = WIDTH if hidden else 1
    made = Guess(sets, width, sigmoid=guess == "sigmoid") if guess else None
    optimizers = [Adam(chain.parameters, lr=3e-3)] + ([Adam(made.parameters, lr=1e-2)] if made else [])
    schedules = [CosineAnnealingLR(optimizer, steps) for optimizer in optimizers]
    for _ in counted(steps, title):
        for optimizer in optimizers:
            optimizer.zero_grad()
        if made is None:
            losses(loss, chain(x, slice(None)), y).sum().backward()
        else:
            _step_on_guess(chain, made, middle, x, y, loss)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return {"losses": losses(loss, chain(x, slice(None)), y).tolist()}


def _step_on_guess(chain: Chain, guess: Guess, middle: int, x: Tensor, y: Tensor, loss: str) -> None:
    """Leave gradients: the true one above the middle, the guess below it, the guess's own."""
    below = chain(x, slice(0, middle))
    h = below.detach().requires_grad_()
    losses(loss, chain(h, slice(middle, None)), y).sum().backward()
    assert h.grad is not None
    guessed = guess(h.detach(), y)
    (guessed - h.grad * x.shape[1]).square().sum(dim=2).mean(dim=1).sum().backward()
    below.backward(guessed.detach() / x.shape[1])


def _toy_trials(full: bool) -> list[Trial]:
    found: list[Trial] = []
    for hidden, loss, size, kind in product(DEPTHS, LOSSES, SIZES, KINDS):
        guesses = ["", "linear", *(["sigmoid"] if loss == "log" and not hidden else [])]
        for guess in guesses:
            key = f"{hidden} hidden, {loss}, {size}-D, {kind}, {guess or 'backprop'}"
            found.append(Trial(key, partial(descend, kind, size, loss, hidden, guess)))
    return found


def _toy_table(results: Mapping[str, Figures]) -> Table:
    """Return the mean of loss minus backprop's over the sampled sets, and the largest."""
    drawn = Table("net", "loss", "guess", "size", *KINDS, box=MARKDOWN)
    for hidden, loss, guess, size in product(DEPTHS, LOSSES, ("linear", "sigmoid"), SIZES):
        cells = [_gap(results, f"{hidden} hidden, {loss}, {size}-D, {kind}", guess) for kind in KINDS]
        if any(cells):
            drawn.add_row("deep" if hidden else "shallow", loss, guess, f"{size}-D", *cells)
    return drawn


def _gap(results: Mapping[str, Figures], key: str, guess: str) -> str:
    gaps = _gaps(results, key, guess)
    return "" if gaps is None else f"{float(gaps.mean()):.5f} (at most {float(gaps.max()):.5f})"


def _gaps(results: Mapping[str, Figures], key: str, guess: str) -> Tensor | None:
    """Return the loss on a guess minus backprop's, for each set of data, where both were run."""
    theirs, ours = results.get(f"{key}, backprop"), results.get(f"{key}, {guess}")
    return None if theirs is None or ours is None else torch.tensor(ours["losses"]) - torch.tensor(theirs["losses"])


def _draw_toy(results: Mapping[str, Figures], file: Path) -> None:
    """Draw the gaps of each kind of data: a panel for shallow nets and one for deep ones."""
    panels: dict[str, dict[str, list[list[float]]]] = {}
    for hidden, loss, guess, size in product(DEPTHS, LOSSES, ("linear", "sigmoid"), SIZES):
        found = [_gaps(results, f"{hidden} hidden, {loss}, {size}-D, {kind}", guess) for kind in KINDS]
        gaps = [each.tolist() for each in found if each is not None]
        if len(gaps) == len(KINDS):
            panels.setdefault("deep" if hidden else "shallow", {})[f"{loss}, {guess}, {size}-D"] = gaps
    draw_gaps(panels, KINDS, file)


def _equilibrium(budget: Budget, title: str) -> Figures:
    """a x + b on four points, the loss its length, the guess a constant: does (1, 0), 0 move?"""
    x, y = torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]]), torch.zeros(1, 4, 1)
    a, b, c = (torch.tensor(value, requires_grad=True) for value in (1.0, 0.0, 0.0))
    optimizer = torch.optim.SGD([a, b, c], lr=0.01)
    for _ in counted(1000, title):
        optimizer.zero_grad()
        h = (a * x + b).detach().requires_grad_()
        h.abs().sum().backward()
        assert h.grad is not None
        (c - h.grad).square().mean().backward()
        (a * x + b).backward(c.detach().expand_as(h))
        optimizer.step()
    (slope,) = torch.autograd.grad((a * x + b - y).abs().sum(), a)
    return {"moved": [a.item() - 1.0, b.item(), c.item()], "true slope": slope.item()}


def _zero_loss(budget: Budget, title: str) -> Figures:
    """Backprop to a loss of zero, fit a guess there, then go on from there on the guess: how far do the weights go?"""
    x, _ = sample("separable", 2, 1)
    chain = Chain.make(1, [2, *[8] * 4, 1])
    y = x @ torch.tensor([[[1.0], [-2.0]]])
    optimizer = Adam(chain.parameters, lr=1e-2)
    schedule = CosineAnnealingLR(optimizer, 5000)
    for _ in counted(5000, f"{title}, by backprop"):
        optimizer.zero_grad()
        losses("mse", chain(x, slice(None)), y).sum().backward()
        optimizer.step()
        schedule.step()
    start = losses("mse", chain(x, slice(None)), y).item()
    guess = Guess(1, 8)
    with torch.no_grad():
        for each in guess.parameters:
            each.normal_(generator=torch.Generator().manual_seed(1))
    _fit_to_nothing(guess, chain(x, slice(0, 2)).detach(), y)
    before = [each.detach().clone() for each in chain.parameters]
    plain = torch.optim.SGD([*chain.parameters, *guess.parameters], lr=0.01)
    for _ in counted(1000, f"{title}, on a guess"):
        plain.zero_grad()
        _step_on_guess(chain, guess, 2, x, y, "mse")
        plain.step()
    moved = max((now - then).abs().max().item() for now, then in zip(chain.parameters, before, strict=True))
    return {"loss before": start, "loss after": losses("mse", chain(x, slice(None)), y).item(), "moved": moved}


def _fit_to_nothing(guess: Guess, h: Tensor, y: Tensor) -> None:
    """Change a random guess by as little as makes it zero on all samples, as the true gradient is."""
    given = torch.cat([h, y, torch.ones_like(y)], dim=2)[0].double()
    with torch.no_grad():
        change = torch.linalg.pinv(given) @ guess(h, y)[0].double()
        guess.a -= change[None, : h.shape[2]]
        guess.b -= change[None, h.shape[2] : -1]
        guess.c -= change[None, -1:]


def _monitor(loss: str, budget: Budget, title: str) -> Figures:
    """Watch eps K / |dL/dtheta| over a shallow net's run on a linear guess, and whether its loss falls."""
    x, y = sample("noisy", 2, 1)
    chain, guess = Chain.make(1, [2, 1]), Guess(1, 1)
    optimizer, learner = torch.optim.SGD(chain.parameters, lr=0.02), Adam(guess.parameters, lr=1e-2)
    given = torch.cat([x, torch.ones(1, x.shape[1], 1)], dim=2)[0] / x.shape[1] ** 0.5
    length = float(torch.linalg.matrix_norm(given, 2))
    logs, falls, safe_falls, safe = list[tuple[int, float]](), 0, 0, 0
    steps = 2000
    for step in counted(steps, title):
        for each in (optimizer, learner):
            each.zero_grad()
        before = losses(loss, chain(x, slice(None)), y).sum()
        true = torch.autograd.grad(before, chain.parameters)
        h = chain(x, slice(None)).detach().requires_grad_()
        losses(loss, h, y).sum().backward()
        assert h.grad is not None
        missed = ((guess(h.detach(), y) - h.grad * x.shape[1]) / x.shape[1] ** 0.5).norm().item()
        ratio = missed * length / float(torch.cat([each.flatten() for each in true]).norm())
        h.grad = None
        _step_on_guess(chain, guess, 1, x, y, loss)
        optimizer.step()
        learner.step()
        fell = losses(loss, chain(x, slice(None)), y).sum().item() < before.item() + ROUNDING
        falls, safe, safe_falls = falls + fell, safe + (ratio < 1), safe_falls + (fell and ratio < 1)
        if step % (steps // 20) == 0:
            logs.append((step, float(torch.tensor(ratio).log())))
    return {
        "log ratio": logs,
        "did not rise": falls / steps,
        "safe": safe / steps,
        "did not rise where safe": safe_falls / max(safe, 1),
    }


def _recovery(loss: str, budget: Budget, title: str) -> Figures:
    """Integrate a trained linear guess over the output: how near is that to the loss, where it was and beyond?"""
    x, y = sample("noisy", 2, 1)
    chain, guess = Chain.make(1, [2, 1]), Guess(1, 1)
    optimizers = [Adam(chain.parameters, lr=3e-3), Adam(guess.parameters, lr=1e-2)]
    for _ in counted(3000, title):
        for optimizer in optimizers:
            optimizer.zero_grad()
        _step_on_guess(chain, guess, 1, x, y, loss)
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        p = chain(x, slice(None))
        low, high = float(p.min()), float(p.max())
        inside, beyond = torch.linspace(low, high, 101), torch.linspace(low - (high - low), high + (high - low), 301)
        return {"inside": _miss(guess, loss, inside), "beyond": _miss(guess, loss, beyond)}


def _miss(guess: Guess, loss: str, p: Tensor) -> float:
    """Return the root mean square of recovered minus true loss over that of the true one, the constant fitted."""
    missed, size = torch.zeros(()), torch.zeros(())
    for label in (0.0, 1.0):
        y = torch.full_like(p, label)
        slope, level = guess.a.flatten()[0], guess.c.flatten()[0] + label * guess.b.flatten()[0]
        recovered = slope * p.square() / 2 + level * p
        true = (p - y).square() if loss == "mse" else F.binary_cross_entropy_with_logits(p, y, reduction="none")
        difference = recovered - true
        missed = missed + (difference - difference.mean()).square().mean()
        size = size + (true - true.mean()).square().mean()
    return float((missed / size).sqrt())


def _proof_trials(full: bool) -> list[Trial]:
    return [
        Trial("spurious equilibrium", _equilibrium),
        Trial("zero loss", _zero_loss),
        *(Trial(f"monitor, {loss}", partial(_monitor, loss)) for loss in LOSSES),
        *(Trial(f"loss recovered, {loss}", partial(_recovery, loss)) for loss in LOSSES),
    ]


def _proof_table(results: Mapping[str, Figures]) -> Table:
    drawn = Table("what", "seen", box=MARKDOWN)
    for key, line in results.items():
        shown = [f"{name} {_shown(value)}" for name, value in line.items() if name not in ABOUT]
        drawn.add_row(key, "; ".join(shown))
    return drawn


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(f"{each[1]:.1f}" if isinstance(each, list) else f"{each:g}" for each in value)  # type: ignore[attr-defined]


ENTRIES = {
    "toy": Entry("Loss on a guess minus loss by backprop, linear nets", _toy_trials, _toy_table, _draw_toy),
    "theory": Entry(
        "Equilibria, the bound of proposition 2, the loss that a guess stands for",
        _proof_trials,
        _proof_table,
        draw_ratios,
    ),
}
