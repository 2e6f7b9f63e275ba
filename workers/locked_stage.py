"""The groups that a stage has under one of torch's schedules, with their optimizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stepahead.pipeline import Group, NonFiniteError, Recipe, StageStatistics, UsageError, recurrent_in

__all__ = ["LockedStage", "Placed"]


@dataclass(frozen=True, slots=True)
class Placed:
    """A group, and which of how many it is."""

    group: Group
    index: int
    of: int


class LockedStage:
    """The groups of one stage with their optimizers."""

    def __init__(self, placed: Sequence[Placed], recipe: Recipe, device: torch.device) -> None:
        self.placed = list(placed)
        self.recipe = recipe
        self.device = device
        for each in placed:
            if recurrent_in(each.group):
                raise UsageError(
                    f"stage {each.index} ({each.group.title}) has a layer that carries its state from batch to batch, "
                    f"and this schedule cuts batches; take lockstep, or decoupled"
                )
            if each.group.has_node_losses:
                raise UsageError(
                    f"stage {each.index} ({each.group.title}) has a loss of its own, and this schedule knows only the "
                    f"one at the end; take lockstep, or decoupled"
                )
            each.group.to(device)
        self.updaters = [recipe.updater(each.group, each.index, each.of) for each in placed]
        self.loss = recipe.loss_for(placed[-1].group, device)
        self.steps = self.skipped = 0
        self.in_flight: Counter[int] = Counter()
        """By group: micro-batches that are gone through forward, and not yet through all of backward."""
        self.most_in_flight: Counter[int] = Counter()
        """The most at a time."""
        self.bytes_sent = 0
        """To the stages below, and back from them."""

    @property
    def has_loss(self) -> bool:
        return any(each.index == each.of - 1 for each in self.placed)

    def update(self, step: int) -> None:
        """Step on the gradients that the schedule left."""
        for each, updater in zip(self.placed, self.updaters, strict=True):
            if updater is not None and not updater.step():
                self.skipped += 1
                if self.recipe.on_non_finite == "stop":
                    raise NonFiniteError(
                        f"step {step} ({each.group.title}): a gradient has values NaN or infinite; "
                        f"lower the learning rate, clip, or skip such batches"
                    )
        self.clear()
        for updater in self.updaters:
            if updater is not None:
                updater.advance()
        self.steps += 1

    def clear(self) -> None:
        """Forget all gradients."""
        for each in self.placed:
            each.group.zero_grad()

    def statistics(self) -> StageStatistics:
        norms = [updater.norm for updater in self.updaters if updater is not None and updater.norm is not None]
        return StageStatistics(
            steps=self.steps,
            loss=None,
            gradient_norm=float(torch.stack(norms).norm()) if norms else None,
            skipped=self.skipped,
            unanswered=0,
            held=0,
            quality=None,
        )
