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

__all__ = ["LRScheduleRecipe", "OptimizerRecipe", "Updater"]

OptimizerRecipe = Callable[[Iterable[nn.Parameter]], Optimizer]
LRScheduleRecipe = Callable[[Optimizer], LRScheduler]


class Updater:
    """Steps some parameters, batch after batch.

    Args:
        parameters: What may be trained.
        optimizer: Makes the optimizer; it may leave parameters out.
        lr_schedule: Makes a learning rate schedule for it, which counts batches.
        owner: Whose parameters they are, for messages.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: OptimizerRecipe,
        lr_schedule: LRScheduleRecipe | None = None,
        *,
        owner: str = "a predictor",
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = _make(optimizer, self.parameters, owner)
        self.lr_schedule = lr_schedule(self.optimizer) if lr_schedule else None
        if isinstance(self.lr_schedule, ReduceLROnPlateau):
            raise UsageError("ReduceLROnPlateau waits for a metric of the whole model; use a schedule by step")
        self._advanced = False

    def gradients(self) -> list[Tensor]:
        """Return the gradients that the optimizer would use now."""
        used = (weight.grad for group in self.optimizer.param_groups for weight in group["params"])
        return [_values(gradient) for gradient in used if gradient is not None]

    def step(self, clip: float | None = None, norm: Tensor | None = None) -> bool:
        """Step if all gradients are finite, and return whether they were."""
        gradients = self.gradients()
        if not are_finite(gradients):
            return False
        if clip is not None:
            used = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            norm = nn.utils.get_total_norm(gradients) if norm is None else norm
            nn.utils.clip_grads_with_norm_(used, clip, norm)
        self.optimizer.step()
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
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(f"{type(optimizer).__name__} runs the model many times a step, which {owner} cannot do")
    return optimizer


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient
