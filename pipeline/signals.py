"""Signals: what a stage steps on.

One interface covers the paper's table of methods. A signal gives the gradient at its group's output, and says
honestly what it must wait for. What comes back later can teach it.

    signal       gradient at h                           waits for                taught by
    Loss         of the loss itself (the last stage)     nothing                  -
    Locked       the gradient from the stage below       that gradient            -
    Delayed      the true gradient of a batch            that, and steps late     -
    Synthetic    a predictor's guess                     nothing                  lagged gradients
    Blend        lambda true + (1 - lambda) synthetic    the gradient from below  that gradient
    Probe        of a local classifier's loss            nothing                  the label, at once
    Silent       none: the group keeps its weights       nothing                  -
    Feedback     a fixed map of what comes from below    a gradient, the error    -
    Critic       the slope of a learnt loss              nothing                  lagged losses (and gradients)

Activations and gradients are single tensors here, detached from any graph; a signal returns detached tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .answers import Answer
from .errors import LabelError, UsageError
from .messages import TensorSpec
from .quality import QualityReading

__all__ = [
    "Asking",
    "Delayed",
    "Locked",
    "Loss",
    "LossFunction",
    "Needs",
    "Signal",
    "SignalRecipe",
    "Silent",
    "apply_loss",
    "arrived",
    "delayed",
    "locked",
    "losses_of",
    "silent",
]

LossFunction = Callable[[Any, Any], Tensor]
"""A function of (output, label) that returns one number; a graph with several outputs gives it a tuple of them."""


class Needs(Enum):
    """What a signal must wait for before it can give its gradient."""

    NOTHING = "nothing"
    OUTPUT_ERROR = "the error at the model's output"
    GRADIENT = "the gradient from the stage below"
    TRUTH = "the truth, some batches later"


class Signal(nn.Module):
    """The interface: give a gradient, and learn from what comes later."""

    needs: ClassVar[Needs] = Needs.NOTHING
    answer: ClassVar[Answer] = Answer.GRADIENT
    """What it waits for or learns from; a recipe of one that asks for something else says so too: `Asking`."""
    passes_truth: ClassVar[bool] = False
    """True if a true gradient from below makes this signal's own gradient true."""
    draws: bool = True
    """Whether it may draw random numbers, which are then keyed as the group's are."""
    loss: Tensor | None = None
    """The objective of the last call, where the signal has one."""

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor | None:
        """Return the gradient at `h`, or None to leave the group as it is; `waited` is what `needs` names."""
        raise TypeError(f"{type(self).__name__} must define gradient()")

    @property
    def quality(self) -> QualityReading | None:
        """How good its guesses are, where it guesses and has been told."""
        return None

    def wants(self, step: int) -> bool:
        """Return whether `learn` will be called with a gradient for this step's batch."""
        return False

    @property
    def pulls(self) -> bool:
        """Whether `learn` returns a gradient."""
        return False

    def learn(self, h: Tensor, y: Tensor | None, delta: Tensor, step: int, *more: Tensor) -> Tensor | None:
        """Learn from `delta`, the gradient at `h` that came later, or what it asked for; good during the call only.

        What it may return is a gradient at `h` that the group's next step takes in too.
        """

    def values(self, h: Tensor, y: Tensor | None) -> Tensor:
        """Return what it takes the samples' losses for, once `gradient` was asked for theirs."""
        raise UsageError(f"a stage asks for the samples' losses, which {type(self).__name__} below it does not know")

    def end_step(self) -> None:
        """Take note that a batch is over, whether it was stepped on or not: a learning rate schedule counts it."""

    def term(self, h: Tensor, y: Tensor | None) -> Tensor | None:
        """Return a loss of the group's own, to be differentiated through `h` (here attached to its graph)."""
        return None


SignalRecipe = Callable[[Tensor, Tensor | None], Signal]
"""Makes a stage's signal from an example of its output and of the label."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A recipe of signals that ask the stage below for something else than each gradient at its input."""

    make: SignalRecipe
    answer: Answer = Answer.GRADIENT
    every: int = 1
    """They learn from the answer to each n-th batch only; from none if this is 0."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UsageError(f"signals ask for the answer to each n-th batch: every is {self.every}; 0 asks for none")

    def __call__(self, h: Tensor, y: Tensor | None) -> Signal:
        return self.make(h, y)


class Loss(Signal):
    """The last stage's signal: the true gradient of the loss."""

    passes_truth = True

    def __init__(self, function: LossFunction) -> None:
        super().__init__()
        self.function = function

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        h = h.detach().requires_grad_()
        loss = apply_loss(self.function, h, y)
        self.loss = loss.detach()
        return torch.autograd.grad(loss, h)[0]

    @torch.no_grad()
    def values(self, h: Tensor, y: Tensor | None) -> Tensor:
        return losses_of(self.function, h, y)

    @torch.no_grad()
    def measure(self, h: Tensor, y: Tensor | None) -> Tensor:
        """Return the loss, for an evaluation."""
        return apply_loss(self.function, h, y)


class Locked(Signal):
    """Plain backprop: wait for the gradient from the stage below."""

    needs = Needs.GRADIENT
    passes_truth = True
    draws = False

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        return arrived(waited)


class Delayed(Signal):
    """The true gradient of a batch, when it comes: the stage goes on with others, and steps on this one late."""

    needs = Needs.TRUTH
    passes_truth = True
    draws = False

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        return arrived(waited)


class Silent(Signal):
    """No signal: the group keeps the weights that it was born with."""

    draws = False

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> None:
        return None


def apply_loss(function: LossFunction, h: Tensor, y: Tensor | None) -> Tensor:
    """Return the loss, after checking that it is one number and that the labels suit it."""
    try:
        loss = function(h, y)
    except IndexError as error:
        raise LabelError(f"the loss refuses a label for an output of shape {list(h.shape)}: {error}") from error
    except (RuntimeError, TypeError, ValueError) as error:
        label = "no label" if y is None else f"a label {TensorSpec.of(y)}"
        reason = str(error).splitlines()[0]
        raise UsageError(f"the loss cannot take an output {TensorSpec.of(h)} and {label}: {reason}") from error
    if not isinstance(loss, Tensor):
        raise UsageError(f"the loss returned a {type(loss).__name__}; it must be a tensor of one number")
    if loss.dim() != 0:
        raise UsageError(f"the loss returned shape {list(loss.shape)}; it must be one number: take the mean")
    return loss


def losses_of(function: LossFunction, h: Tensor, y: Tensor | None) -> Tensor:
    """Return the loss of each sample; where the function only tells the mean, that for each of them.

    Their mean is the loss, whatever weights it has for classes and wherever it leaves places out.
    """
    if isinstance(function, nn.Module) and getattr(function, "reduction", None) == "mean":
        each = copy(function)
        each.__dict__["reduction"] = "none"
        losses: Tensor = each(h, y)
        losses = losses.flatten(1).mean(dim=1) if losses.dim() > 1 else losses
        return losses * (apply_loss(function, h, y) / losses.mean()).nan_to_num(1.0)
    return apply_loss(function, h, y).expand(len(h))


def locked(h: Tensor, y: Tensor | None) -> Signal:
    """The recipe of `Locked`."""
    return Locked()


def delayed(h: Tensor, y: Tensor | None) -> Signal:
    """The recipe of `Delayed`."""
    return Delayed()


def _silent(h: Tensor, y: Tensor | None) -> Signal:
    return Silent()


silent = Asking(_silent, every=0)
"""The recipe of `Silent`."""


def arrived(waited: Tensor | None) -> Tensor:
    """Return what a signal waited for; to be asked before it came is a mistake of the caller."""
    assert waited is not None, "this signal was asked for its gradient before what it needs had come"
    return waited
