"""The rows of the tables: what stages step on, and what they do with the truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.optim import AdamW

from stepahead.pipeline import SignalRecipe, Truth, locked, synthetic

from .tasks import Task

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of training."""

    truth: Truth = field(default_factory=Truth)
    rate: float = 1.0
    """Times the task's learning rate."""
    predictor_rate: float = 1.0
    """Times the task's learning rate, of predictors."""
    backprop: bool = False
    hidden: int | None = None
    """Units of a token predictor."""
    scheduled: bool = True
    """Whether the predictors' rate falls as the model's does."""

    def signal(self, task: Task) -> SignalRecipe:
        if self.backprop:
            return locked
        options: dict[str, Any] = {**task.predictor_options, **({"hidden": self.hidden} if self.hidden else {})}
        return synthetic(
            task.predictor,
            classes=task.classes,
            optimizer=partial(AdamW, lr=self.predictor_rate * task.rate, weight_decay=0.0, fused=True),
            lr_schedule=task.lr_schedule if self.scheduled else None,
            **options,
        )


def _true_up(every: int, **options: object) -> Truth:
    return Truth(use="true-up", every=every, relay="sum", **options)  # type: ignore[arg-type]


ROWS: dict[str, Row] = {
    "backprop": Row(backprop=True),
    "synthetic": Row(),
    "replay": Row(truth=Truth(use="replay")),
    "stash": Row(truth=Truth(use="stash")),
    "learn": Row(truth=Truth(use="learn")),
    **{f"true-up k={k}": Row(truth=_true_up(k)) for k in (1, 2, 4, 8)},
    "true-up k=1 again": Row(truth=Truth(use="true-up", relay="again")),
    "true-up k=1 graph": Row(truth=_true_up(1, keep="graph")),
    **{f"true-up k={k} spread": Row(truth=_true_up(k, spread=float(k))) for k in (2, 4, 8)},
}
