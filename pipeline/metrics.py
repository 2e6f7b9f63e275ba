"""Numbers that judge a model's output, and their averages over an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .errors import UsageError
from .groups import Group

__all__ = ["Averages", "Metric", "accuracy", "metrics_for"]

Metric = Callable[[Any, Tensor], Tensor]
"""A function of (output, label) that returns a mean over the samples; of several outputs it is given a tuple."""


def accuracy(output: Tensor, label: Tensor) -> Tensor:
    """Return the share of places where the largest output, over dimension -1, is the label."""
    return (output.argmax(dim=-1) == label).float().mean()


def metrics_for(group: Group, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return metrics as functions of what the last group puts out."""
    return {name: group.for_outputs(metric) for name, metric in metrics.items()}


class Averages:
    """The means over an evaluation's samples, batch after batch.

    Args:
        loss: Gives the loss of an output and its label.
        metrics: What else to measure where there is a label, by name.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor | None], Tensor], metrics: Mapping[str, Metric]) -> None:
        self._loss = loss
        self._metrics = metrics
        self._totals: dict[str, float] = {}
        self._samples = 0

    def add(self, output: Tensor, label: Tensor | None) -> None:
        """Take a batch into account."""
        measured = {"loss": self._loss(output, label)}
        if label is not None:
            measured |= {name: metric(output, label) for name, metric in self._metrics.items()}
        for name, value in measured.items():
            self._totals[name] = self._totals.get(name, 0.0) + float(value) * len(output)
        self._samples += len(output)

    def take(self) -> dict[str, float]:
        """Return the means so far, and begin anew."""
        if not self._samples:
            raise UsageError("there is no batch to evaluate on")
        means = {name: total / self._samples for name, total in self._totals.items()}
        self._totals, self._samples = {}, 0
        return means
