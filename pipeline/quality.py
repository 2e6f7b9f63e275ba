"""How good a predictor is: its predictions beside the gradients that came later, as running averages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Quality", "QualityReading"]

VALUES = 16_384
"""About how many values of a batch are looked at, in whole rows: plenty for an average."""
EVERY = 4
"""Of so many batches, one is looked at."""


@dataclass(frozen=True, slots=True)
class QualityReading:
    """What the averages say now."""

    cosine: float
    """Of the angle between predictions and gradients: 1 is the same direction."""
    relative_error: float
    """Length of the error over the length of the gradient: 1 is as good as predicting zero."""
    sign_error: float
    """Share of the gradients' components, zeros left out, whose sign the prediction does not have."""
    batches: int
    """How many batches the predictor has learnt from."""


class Quality:
    """Running averages of a predictor's quality, for next to nothing: every `EVERY`th batch, a few of its rows.

    The sums are averaged, not the ratios, and stay on the device: nothing waits until somebody reads.
    """

    def __init__(self, *, memory: int = 25) -> None:
        self.memory = memory
        self.batches = 0
        self._sums: Tensor | None = None

    @torch.no_grad()
    def update(self, prediction: Tensor, gradient: Tensor) -> None:
        """Take in one batch of predictions and the gradients that they should have been."""
        self.batches += 1
        if self.batches % EVERY != 1:
            return
        stride = min(len(gradient), max(1, gradient.numel() // VALUES))
        p, g = prediction[::stride].flatten().float(), gradient[::stride].flatten().float()
        sums = torch.stack([p @ g, p @ p, g @ g, ((p * g > 0).sum()).float(), g.count_nonzero().float()])
        if self._sums is None:
            self._sums = sums
        else:
            self._sums.lerp_(sums, max(1 / (1 + self.batches // EVERY), 1 / self.memory))

    def read(self) -> QualityReading | None:
        """Return the averages, or None before the first batch."""
        if self._sums is None:
            return None
        dot, pp, gg, same_sign, counted = self._sums.tolist()  # one wait for the device
        return QualityReading(
            cosine=dot / (pp * gg) ** 0.5 if pp * gg > 0 else 0.0,
            relative_error=(max(pp - 2 * dot + gg, 0.0) / gg) ** 0.5 if gg > 0 else 0.0,
            sign_error=1 - same_sign / counted if counted else 0.0,
            batches=self.batches,
        )
