"""The rows of the tables: what stages step on, and what they do with the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import AdamW

from stepahead.launch.job_chars import Attention, End, Hidden
from stepahead.pipeline import OptimizerRecipe, SignalRecipe, Truth, locked, probe, silent, synthetic

from .tasks import Task

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of training."""

    signal: Literal["synthetic", "probe", "silent", "backprop"] = "synthetic"
    truth: Truth = field(default_factory=Truth)
    rate: float = 1.0
    """Times the task's learning rate."""
    own_rate: float = 1.0
    """Times the task's learning rate, of predictors or probes."""
    kind: str | None = None
    """Of predictor; the task's unless given."""
    predictor: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options of that."""
    labels: bool = True
    """Whether predictors see the labels: cDNI, or else DNI."""
    head: str = "linear"
    """Of HEADS, what a probe is."""

    def recipe(self, task: Task) -> SignalRecipe:
        """Return the recipe of the stages' signal."""
        optimizer: OptimizerRecipe = partial(AdamW, lr=self.own_rate * task.rate, weight_decay=0.0, fused=True)
        if self.signal == "probe":
            head = HEADS[self.head]
            make = None if head is None else lambda h: head(h, task.classes)
            return probe(
                loss=task.loss, optimizer=optimizer, classes=task.classes, head=make, lr_schedule=task.lr_schedule
            )
        if self.signal == "synthetic":
            options: dict[str, Any] = {**({} if self.kind else task.predictor_options), **self.predictor}
            classes = task.classes if self.labels else None
            return synthetic(
                self.kind or task.predictor,
                classes=classes,
                optimizer=optimizer,
                lr_schedule=task.lr_schedule,
                **options,
            )
        return locked if self.signal == "backprop" else silent


def _norm(h: Tensor, classes: int) -> nn.Module:
    return End(h.shape[-1], classes)


def _hidden(h: Tensor, classes: int) -> nn.Module:
    return nn.Sequential(Hidden(h.shape[-1]), End(h.shape[-1], classes))


def _block(h: Tensor, classes: int) -> nn.Module:
    return nn.Sequential(Attention(h.shape[-1], 4), Hidden(h.shape[-1]), End(h.shape[-1], classes))


HEADS: dict[str, Callable[[Tensor, int], nn.Module] | None] = {
    "linear": None,
    "norm": _norm,
    "hidden": _hidden,
    "block": _block,
}
"""A linear layer, the same after a norm, and after a half or a whole transformer block; but the first for sequences."""


def _true_up(every: int | tuple[int, ...], **options: Any) -> Truth:
    chosen: dict[str, Any] = {"relay": "sum", **options}
    return Truth(use="true-up", every=every, **chosen)


BY_LAG = 6.0
"""Steps of delay up to which a stage learns at its full rate, in the rows "by lag"."""

ROWS: dict[str, Row] = {
    "backprop": Row(signal="backprop"),
    "silent": Row(signal="silent"),
    "synthetic": Row(),
    "synthetic, no labels": Row(labels=False),
    "synthetic, rate x10": Row(own_rate=10.0),
    "replay": Row(truth=Truth(use="replay")),
    "replay, rate x0.5": Row(truth=Truth(use="replay"), rate=0.5),
    "stash": Row(truth=Truth(use="stash")),
    **{f"learn k={k}": Row(truth=Truth(use="learn", every=k)) for k in (1, 2, 4)},
    **{f"true-up k={k}": Row(truth=_true_up(k)) for k in (1, 2, 4, 8)},
    **{f"true-up k={k}, spread": Row(truth=_true_up(k, spread=float(k))) for k in (2, 4, 8)},
    "true-up k=4,2,1": Row(truth=_true_up((4, 2, 1))),
    "true-up k=1, relay again": Row(truth=_true_up(1, relay="again")),
    "true-up k=4, relay again": Row(truth=_true_up(4, relay="again")),
    **{f"{use}, rate x0.25": Row(truth=Truth(use=use), rate=0.25) for use in ("replay", "stash")},
    **{f"true-up k={k}, rate x0.25": Row(truth=_true_up(k), rate=0.25) for k in (1, 4)},
    "true-up k=1, graph": Row(truth=_true_up(1, keep="graph")),
    "true-up k=4, graph": Row(truth=_true_up(4, keep="graph")),
    "true-up k=1, graph, by lag": Row(truth=_true_up(1, keep="graph", full_rate_lag=BY_LAG)),
    "true-up k=1, relay again, by lag": Row(truth=_true_up(1, relay="again", full_rate_lag=BY_LAG)),
    **{f"{use}, by lag": Row(truth=Truth(use=use, full_rate_lag=BY_LAG)) for use in ("replay", "stash")},
    **{f"true-up k={k}, by lag": Row(truth=_true_up(k, full_rate_lag=BY_LAG)) for k in (1, 2, 4, 8)},
    "true-up k=4, rate x0.5": Row(truth=_true_up(4), rate=0.5),
    "true-up k=4, predictor's rate x3": Row(truth=_true_up(4), own_rate=3.0),
    "true-up k=4, predictor's rate x10": Row(truth=_true_up(4), own_rate=10.0),
    "true-up k=4, predictor ahead 8": Row(truth=_true_up(4), predictor={"ahead": 8}),
    "true-up k=1, critic": Row(truth=_true_up(1), kind="critic"),
    "true-up k=1, critic, by lag": Row(truth=_true_up(1, full_rate_lag=BY_LAG), kind="critic"),
    **{f"probe {head}": Row(signal="probe", head=head) for head in HEADS},
    **{f"true-up k={k}, probe {head}": Row(signal="probe", head=head, truth=_true_up(k))
       for k in (1, 2, 4) for head in ("linear", "norm")},
}  # fmt: skip
