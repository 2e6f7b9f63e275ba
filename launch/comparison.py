"""A comparison: what was measured of each schedule, and what follows from it. Pure figures; `compare.py` runs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from stepahead.pipeline import LOCKED

from .trial import Curve

__all__ = ["CEILING", "DECOUPLED", "LATE", "NO_PIPELINE", "SINGLE", "Comparison", "Row"]

SINGLE, CEILING, DECOUPLED = "single", "ceiling", "decoupled"
LATE = ("replay", "stash")
"""Schedules that step late on the truth: they have no bubble either."""
NO_PIPELINE = (SINGLE, CEILING)
"""Rows that are no schedule of a pipeline: one process, and what no pipeline can pass."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One schedule."""

    schedule: str
    microbatches: int | None = None
    cut: tuple[int, ...] = ()
    """How many layers each group has."""
    rates: list[float] = field(default_factory=list[float])
    """Samples a second, of each round."""
    useful: list[float] = field(default_factory=list[float])
    tax: list[float] = field(default_factory=list[float])
    idle: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """Shares of each stage's time, of the last round."""
    peak_activation_bytes: list[int] = field(default_factory=list[int])
    bytes_per_step: float | None = None
    curves: list[Curve] = field(default_factory=list[Curve])
    """Seconds, samples and loss, of each round."""
    contention: float | None = None
    """The least of all stages: in which share of the time that they could run they did."""
    tried: dict[int, float] = field(default_factory=dict[int, float])
    """Samples a second with other numbers of micro-batches."""
    error: str | None = None

    @property
    def rate(self) -> float | None:
        """The median of the rounds."""
        return median(self.rates) if self.rates else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The quartiles."""
        if not self.rates:
            return None
        low, _, high = quantiles(self.rates, n=4, method="inclusive") if len(self.rates) > 1 else self.rates * 3
        return low, high

    @property
    def is_locked(self) -> bool:
        return self.schedule in LOCKED

    @property
    def name(self) -> str:
        return self.schedule if self.microbatches is None else f"{self.schedule} M={self.microbatches}"

    def seconds_to(self, loss: float | None) -> float | None:
        """Return the median of the seconds until the loss was so low; None if most rounds did not come to it."""
        if loss is None or not self.curves:
            return None
        found = [next((at for at, _, value in curve if value <= loss), math.inf) for curve in self.curves]
        middle = median(found)
        return None if math.isinf(middle) else middle


@dataclass(slots=True, kw_only=True)
class Comparison:
    """All rows, and what they were measured on."""

    job: str
    stages: int
    virtual: bool
    rows: list[Row]
    target_loss: float | None = None
    """As it was asked for."""
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])

    def row(self, schedule: str) -> Row | None:
        """Return the row of a schedule, if it was measured."""
        return next((row for row in self.rows if row.schedule == schedule and row.rates), None)

    @property
    def best_locked(self) -> Row | None:
        """The locked schedule with the most samples a second."""
        return max(
            (row for row in self.rows if row.is_locked and row.rates), key=lambda row: row.rate or 0, default=None
        )

    @property
    def target(self) -> float | None:
        """The loss that is asked for, or else the lowest to which all schedules came from what they began with."""
        if self.target_loss is not None:
            return self.target_loss
        courses = [[loss for _, _, loss in curve] for row in self.racing for curve in row.curves if curve]
        lowest = max((min(losses) for losses in courses), default=None)
        return None if lowest is None or lowest >= min(losses[0] for losses in courses) else lowest

    @property
    def racing(self) -> list[Row]:
        """The rows that train a pipeline."""
        return [row for row in self.rows if row.schedule not in NO_PIPELINE and row.rates]

    @property
    def first(self) -> Row | None:
        """The row that comes to the target first."""
        timed = [(seconds, row) for row in self.racing if (seconds := row.seconds_to(self.target)) is not None]
        return min(timed, key=lambda entry: entry[0])[1] if timed else None

    def ratio(self, row: Row, other: Row | None) -> float | None:
        """Return how many times the samples a second of another row a row makes: the median of round by round."""
        if other is None or not row.rates or not other.rates:
            return None
        if len(row.rates) == len(other.rates):
            return median(a / b for a, b in zip(row.rates, other.rates, strict=True))
        return median(row.rates) / median(other.rates)

    @property
    def predictor_tax(self) -> float | None:
        """What predictor and replays cost the decoupled stage that pays most, over what it would do anyway."""
        row = self.row(DECOUPLED)
        if row is None or not all(row.useful):
            return None
        return max((tax / useful for tax, useful in zip(row.tax, row.useful, strict=True)), default=None)

    @property
    def bubble(self) -> float | None:
        """What the best locked schedule's stages do nothing for, in the mean."""
        best = self.best_locked
        return 1 - sum(best.useful) / len(best.useful) if best is not None and best.useful else None

    @property
    def break_even(self) -> float | None:
        """Up to which predictor's tax decoupled makes as many samples a second as the best locked schedule."""
        tax, row, best = self.predictor_tax, self.row(DECOUPLED), self.best_locked
        ratio = None if row is None else self.ratio(row, best)
        return None if tax is None or ratio is None else ratio * (1 + tax) - 1

    def as_json(self, verdict: Sequence[str]) -> dict[str, Any]:
        """Return it as it is written to compare.json."""
        return {
            "job": self.job,
            "stages": self.stages,
            "virtual": self.virtual,
            "target_loss": self.target,
            "predictor_tax": self.predictor_tax,
            "bubble": self.bubble,
            "break_even": self.break_even,
            "rows": [self._row_as_json(row) for row in self.rows],
            "verdict": list(verdict),
            "notes": self.notes,
            "machine": self.machine,
            "versions": self.versions,
        }

    def _row_as_json(self, row: Row) -> dict[str, Any]:
        return {
            "schedule": row.schedule,
            "microbatches": row.microbatches,
            "cut": row.cut,
            "samples_per_second": row.rate,
            "spread": row.spread,
            "rounds": row.rates,
            "ratio_to_lockstep": self.ratio(row, self.row("lockstep")),
            "ratio_to_best_locked": self.ratio(row, self.best_locked),
            "useful": row.useful,
            "tax": row.tax,
            "idle": row.idle,
            "peak_activation_bytes": row.peak_activation_bytes,
            "bytes_per_step": row.bytes_per_step,
            "loss_curve": row.curves[0] if row.curves else [],
            "seconds_to_target": row.seconds_to(self.target),
            "contention": row.contention,
            "tried": {str(count): rate for count, rate in row.tried.items()},
            "error": row.error,
        }
