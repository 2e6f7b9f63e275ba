"""What a stage has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from .quality import QualityReading

__all__ = ["StageStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatistics:
    """One stage's."""

    steps: int
    """Batches that have come in."""
    loss: float | None
    """The signal's objective on the last batch: the loss itself at the last stage."""
    gradient_norm: float | None
    """Length of the group's gradient when it was last measured, before clipping."""
    skipped: int
    """Batches in which something was not finite, so that the group did not step, or the signal did not learn."""
    unanswered: int
    """Batches whose gradient has not come back yet."""
    held: int
    """Bytes that are kept for them and their repairs, but for what autograd keeps."""
    quality: QualityReading | None
    """How good the signal's guesses are."""
    missed: float | None = None
    """What a step on a guess lacked, over the length of the true gradient; known where steps are trued up."""
    inputs: QualityReading | None = None
    """How good the guesses of what comes from above are."""
    windows: QualityReading | None = None
    """How good the guesses of what comes after a window are, in the first recurrent layer that makes such."""
