"""Updates: parameters with their optimizer and their learning rate schedule.

Groups, predictors and probes all step through here, so that none of them ever steps on what is not finite.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .errors import UsageError
from .finite import are_finite

__all__ = ["LRScheduleRecipe", "OptimizerRecipe", "Updater", "needs_closure", "values_of"]

OptimizerRecipe = Callable[[Iterable[nn.Parameter]], Optimizer]
LRScheduleRecipe = Callable[[Optimizer], LRScheduler]
NORM_EVERY = 16
"""The norm of the gradient is measured on every so many steps, or on all where it is clipped."""


class Updater:
    """Steps some parameters, batch after batch.

    Args:
        parameters: What may be trained.
        optimizer: Makes the optimizer; it may leave parameters out.
        lr_schedule: Makes a learning rate schedule for it, which counts batches.
        clip: The most that the norm of the gradient may be.
        rate: Times the learning rates of optimizer and schedule.
        owner: Whose parameters they are, for messages.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: OptimizerRecipe,
        lr_schedule: LRScheduleRecipe | None = None,
        *,
        clip: float | None = None,
        rate: float = 1.0,
        owner: str = "a predictor",
    ) -> None:
        self.clip = clip
        self.rate = rate
        self.norm: Tensor | None = None
        """Of the gradient when it was last measured, before clipping."""
        self.parameters = list(parameters)
        self.optimizer = _make(optimizer, self.parameters, owner)
        self.lr_schedule = lr_schedule(self.optimizer) if lr_schedule else None
        if isinstance(self.lr_schedule, ReduceLROnPlateau):
            raise UsageError("ReduceLROnPlateau waits for a metric of the whole model; use a schedule by step")
        self._trained: list[nn.Parameter] = [w for group in self.optimizer.param_groups for w in group["params"]]
        self._steps = 0
        self._advanced = False

    def step(self) -> bool:
        """Step if all gradients are finite, and return whether they were."""
        gradients = [values_of(gradient) for weight in self._trained if (gradient := weight.grad) is not None]
        if not are_finite(gradients):
            return False
        if self.clip is not None or self._steps % NORM_EVERY == 0:
            self.norm = nn.utils.get_total_norm(gradients)
            if self.clip is not None:
                nn.utils.clip_grads_with_norm_(self._trained, self.clip, self.norm)
        if self.rate == 1.0:
            self.optimizer.step()
        else:
            self._step_at_rate()
        self._steps += 1
        return True

    def clear(self) -> None:
        """Forget all gradients, also those of parameters that the optimizer leaves out."""
        for parameter in self.parameters:
            parameter.grad = None

    def advance(self) -> None:
        """Let the schedule count one batch, stepped on or not."""
        if self.lr_schedule is None:
            return
        if self._advanced:
            self.lr_schedule.step()
            return
        self._advanced = True
        with warnings.catch_warnings():  # torch warns when the first batch of all brought no step
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.lr_schedule.step()

    def _step_at_rate(self) -> None:
        """Step at `rate` times the learning rates, and leave these as they were: some schedules go on from the last."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * self.rate
        self.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


def _make(recipe: OptimizerRecipe, parameters: list[nn.Parameter], owner: str) -> Optimizer:
    if isinstance(recipe, Optimizer) or not callable(recipe):
        raise UsageError(
            f"the optimizer of {owner} is a {type(recipe).__name__}; give a function that makes one, "
            f"for example functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    try:
        optimizer = recipe(parameters)
    except ValueError as error:
        raise UsageError(f"the optimizer of {owner} cannot be made: {error}") from error
    if needs_closure(optimizer):
        raise UsageError(f"{type(optimizer).__name__} runs the model many times a step, which {owner} cannot do")
    return optimizer


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether it runs the model itself, many times a step."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def values_of(gradient: Tensor) -> Tensor:
    """Return the values of a gradient; a sparse one's are fewer than its places."""
    return gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient
