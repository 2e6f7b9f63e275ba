"""From groups to stages: one recipe gives every stage its signal, its optimizer and its place."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .errors import UsageError
from .groups import Group
from .randomness import keyed
from .signals import Loss, LossFunction, OptimizerRecipe, ScheduleRecipe, SignalRecipe
from .stage import NO_SPAN, NonFinitePolicy, Span, Stage

__all__ = ["Recipe", "assemble", "outputs"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run's stages are made. Where a list is given, it has one entry for each stage.

    Example:
        Recipe(
            loss=nn.CrossEntropyLoss(),
            signal=synthetic("linear", classes=10, optimizer=partial(Adam, lr=3e-4)),
            optimizer=partial(AdamW, lr=1e-3),      # None leaves a group's weights as they are
            schedule=lambda optimizer: MultiStepLR(optimizer, [2400, 3400]),
        )
    """

    loss: LossFunction
    signal: SignalRecipe | Sequence[SignalRecipe]
    """What every stage but the last steps on."""
    optimizer: OptimizerRecipe | Sequence[OptimizerRecipe | None] | None
    schedule: ScheduleRecipe | Sequence[ScheduleRecipe | None] | None = None
    clip: float | None = None
    """The most that the norm of one stage's gradient may be; stages do not wait for a common norm."""
    seed: int = 0
    on_non_finite: NonFinitePolicy = "stop"
    """What NaN or infinity does: "stop" raises, "skip" passes the batch over."""

    def stage(
        self,
        group: Group,
        index: int,
        stages: int,
        output: Tensor,
        label: Tensor | None,
        *,
        device: torch.device | None = None,
        span: Span = lambda name: NO_SPAN,
    ) -> Stage:
        """Make one stage, given an example of its group's output and of the label."""
        device = device or torch.device("cpu")
        group.to(device)
        if index == stages - 1:
            signal: Any = Loss(self.loss)
        else:
            with keyed(self.seed, index, "signal", device=device):
                signal = _one(self.signal, index)(output.to(device), label)
        optimizer = self._optimizer(group, index)
        schedule = _one(self.schedule, index)
        return Stage(
            group,
            signal,
            optimizer,
            schedule=_checked_schedule(schedule(optimizer)) if schedule and optimizer else None,
            clip=self.clip,
            index=index,
            stages=stages,
            seed=self.seed,
            device=device,
            on_non_finite=self.on_non_finite,
            span=span,
        )

    def _optimizer(self, group: Group, index: int) -> torch.optim.Optimizer | None:
        make = _one(self.optimizer, index)
        if make is None:
            return None
        parameters = [parameter for parameter in group.parameters() if parameter.requires_grad]
        if not parameters:
            raise UsageError(
                f"stage {index} ({group.title}) has no parameters to train; cut elsewhere, "
                f"or give this stage the optimizer None"
            )
        optimizer: torch.optim.Optimizer = make(parameters)
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise UsageError(f"{type(optimizer).__name__} runs the model many times a step, which no stage can do")
        return optimizer


def assemble(groups: Sequence[Group], example: tuple[Tensor, Tensor | None], recipe: Recipe) -> list[Stage]:
    """Make all stages of a model, given one batch and its label as an example."""
    for name in ("signal", "optimizer", "schedule"):
        _check_length(name, getattr(recipe, name), len(groups))
    data, label = example
    shapes = outputs(groups, data)
    return [
        recipe.stage(group, index, len(groups), output, label)
        for index, (group, output) in enumerate(zip(groups, shapes, strict=True))
    ]


@torch.no_grad()
def outputs(groups: Sequence[Group], data: Tensor) -> list[Tensor]:
    """Return what each group makes of an example, the groups' buffers and the random stream left as they were."""
    results: list[Tensor] = []
    with keyed(0, "example"):
        for group in groups:
            mode = group.training
            data = group.eval()(data)
            group.train(mode)
            results.append(data)
    return results


def _one(value: object, index: int) -> Any:
    return cast(Sequence[object], value)[index] if isinstance(value, Sequence) else value


def _check_length(name: str, value: object, stages: int) -> None:
    least = stages - 1 if name == "signal" else stages
    if isinstance(value, Sequence) and (listed := len(cast(Sequence[object], value))) < least:
        raise UsageError(f"the recipe lists {listed} of {name}, but there are {stages} stages")


def _checked_schedule(schedule: LRScheduler) -> LRScheduler:
    if isinstance(schedule, ReduceLROnPlateau):
        raise UsageError("ReduceLROnPlateau waits for a metric of the whole model; use a schedule by step")
    return schedule
