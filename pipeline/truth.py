"""The truth: what a stage does with the true gradient of a batch, which comes some batches later.

    use       the stage steps on         and the truth of a batch
    off       its signal, at once        is not asked for: the gradients of the stage below teach the predictor
    learn     its signal, at once        teaches the predictor
    true-up   its signal, at once        repairs that step: the next ones get k J'(truth - guess) on top
    replay    the truth, when it comes   is all it steps on, at the weights of then (features replay)
    stash     the truth, when it comes   is all it steps on, at the weights that the batch went forward with (PipeDream)

A stage that has the truth of a batch passes it on: it runs the batch's backward pass again, and its input's gradient
is the truth of the stage above. With true-up, where every k-th batch is repaired k times over, the sum of both steps
is the true gradient in the mean as long as weights and predictor stand still: the guess is a control variate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from .answers import Answer
from .errors import UsageError, did_you_mean
from .signals import Needs, Signal

__all__ = ["KEEPS", "RELAYS", "USES", "Repair", "StageTruth", "Truth", "TruthUse"]

TruthUse = Literal["off", "learn", "replay", "stash", "true-up"]
USES: tuple[TruthUse, ...] = ("off", "learn", "replay", "stash", "true-up")
Keep = Literal["input", "graph"]
KEEPS: tuple[Keep, ...] = ("input", "graph")
Relay = Literal["again", "sum"]
RELAYS: tuple[Relay, ...] = ("again", "sum")


@dataclass(frozen=True, slots=True)
class StageTruth:
    """What one stage does with the truth."""

    use: TruthUse = "off"
    every: int = 0
    """The stage uses the truth of batches 0, k, 2k ..; of none if this is 0."""
    above: int = 0
    """The stage above does so of these."""
    keep: Keep = "input"
    relay: Relay = "sum"
    spread: float = 1.0
    rate: float = 1.0
    """Times the stage's learning rate: less, the later its truths come."""

    def awaits(self, step: int) -> bool:
        """Return whether the answer to this step's batch is to be its truth."""
        return self.every > 0 and step % self.every == 0

    def owes(self, step: int) -> bool:
        """Return whether the stage above awaits the truth of this step's batch."""
        return self.above > 0 and step % self.above == 0

    def check(self, signal: Signal) -> None:
        """Refuse a signal whose needs do not go with this."""
        name, needs = type(signal).__name__, signal.needs
        if needs in (Needs.GRADIENT, Needs.OUTPUT_ERROR) and self.use != "off":
            raise UsageError(f"{name} waits for {needs.value}; leave the truth off, for it has no use then")
        if signal.answer is not Answer.GRADIENT and self.use != "off":
            raise UsageError(f"{name} learns from {signal.answer.value}; leave the truth off, for it has no use then")
        if (needs is Needs.TRUTH) != (self.use in ("replay", "stash")):
            raise UsageError(f"the signal {name} and the truth's use {self.use!r} do not go together")

    @property
    def keeps_graph(self) -> bool:
        return self.every > 0 and (self.use == "stash" or (self.use != "replay" and self.keep == "graph"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the stages of a run do with the truth.

    Args:
        use: See above.
        every: k: the truth of every k-th batch only, for all stages or, but for the last, for each. A stage can have
            the truth only of batches that the stage below has it of: its k is a multiple of that one's. Unless given
            it is 4 with true-up, for with 1 and Adam the delay is not stable at high rates, and 1 otherwise.
        keep: What is kept of a batch whose truth will be used: its "input", to run it again with the weights of then,
            or its "graph", with a copy of the weights that it went through.
        relay: How the gradient at the input is made: by running backward "again", for the truth alone; or as a "sum"
            of what the stage's signal had said and what the repair makes of the difference: half the work, and not
            exact if the weights have moved in between.
        spread: A repair is spread over about so many steps, a like share of what is left at each.
        full_rate_lag: Steps of delay up to which a stage learns at its full rate. The truths of a stage with n stages
            below it come 2 n steps late; if that is more, its learning rate is lower in proportion: so its weights
            move no further until it hears what came of it.
    """

    use: TruthUse = "off"
    every: int | Sequence[int] | None = None
    keep: Keep = "input"
    relay: Relay = "sum"
    spread: float = 1.0
    full_rate_lag: float = math.inf

    def __post_init__(self) -> None:
        for name, choices in (("use", USES), ("keep", KEEPS), ("relay", RELAYS)):
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"the truth's {name} is {value!r}; {did_you_mean(value, choices)}")
        periods = [self.period] if isinstance(self.period, int) else list(self.period)
        if any(period < 1 for period in periods):
            raise UsageError(f"the truth is used of every {self.every}-th batch; that must be at least 1")
        if self.is_late and periods != [1] * len(periods):
            raise UsageError(f"with {self.use}, stages step on the truth alone, so they need that of every batch")
        for above, below in pairwise(periods):
            if above % below:
                raise UsageError(f"a stage that uses each {above}-th truth is above one that has each {below}-th only")
        if not self.full_rate_lag > 0:
            raise UsageError(f"stages learn at full rate up to a lag of {self.full_rate_lag}; that must be above 0")
        if not self.spread >= 1.0:
            raise UsageError(f"a repair is spread over {self.spread} steps; that must be at least 1")

    @property
    def period(self) -> int | Sequence[int]:
        """`every`, or what it is unless given."""
        return (4 if self.use == "true-up" else 1) if self.every is None else self.every

    @property
    def is_late(self) -> bool:
        """Whether stages step on the truth alone, when it comes."""
        return self.use in ("replay", "stash")

    def at(self, index: int, stages: int) -> StageTruth:
        """Return what one of the stages does."""
        if self.use == "off" or index == stages - 1:
            return StageTruth()
        periods = [self.period] * (stages - 1) if isinstance(self.period, int) else list(self.period)
        if len(periods) != stages - 1:
            raise UsageError(f"the truth has {len(periods)} periods, and {stages - 1} stages use it")
        above = periods[index - 1] if index else 0
        lag = 2 * (stages - 1 - index)
        rate = 1.0 if self.use == "learn" else min(1.0, self.full_rate_lag / lag)
        return StageTruth(self.use, periods[index], above, self.keep, self.relay, self.spread, rate)


class Repair:
    """What the steps that were made on guesses lack: the steps that follow make up for it.

    Args:
        weights: Whose gradients are repaired.
        spread: Of what is left, each step takes one part in so many.
    """

    def __init__(self, weights: Iterable[nn.Parameter], spread: float = 1.0) -> None:
        self.weights = list(weights)
        self.spread = spread
        self.nbytes = 0
        """What it has held at most."""
        self._left: list[Tensor | None] | None = None
        self._joined: list[Tensor | None] = []

    @property
    def is_due(self) -> bool:
        return self._left is not None

    def add(self, gradients: Sequence[Tensor | None], factor: float) -> None:
        """Take in what is missing, so many times over; what is missing nowhere stays None."""
        if not any(gradient is not None for gradient in gradients):
            return
        left = self._left or [None] * len(self.weights)
        self._left = [_sum(old, new, factor) for old, new in zip(left, gradients, strict=True)]
        held = sum(tensor.nbytes for tensor in self._left if tensor is not None and not tensor.is_sparse)
        self.nbytes = max(self.nbytes, held)

    def join(self, share: float | None = None) -> None:
        """Add a share of what is left to the gradients of the coming step."""
        self._joined = []
        if self._left is None:
            return
        share = 1 / self.spread if share is None else share
        self._joined = [None if left is None else left * share for left in self._left]
        for weight, joined in zip(self.weights, self._joined, strict=True):
            weight.grad = _sum(weight.grad, joined, 1.0)
        rest = [None if left is None else left * (1 - share) for left in self._left]
        self._left = rest if share < 1.0 else None

    def put_back(self) -> None:
        """Take back what was joined to a step that was not made."""
        self.add(self._joined, 1.0)


def _sum(old: Tensor | None, new: Tensor | None, factor: float) -> Tensor | None:
    """Return the sum of two gradients, the second so many times over; sparse ones stay sparse."""
    if new is None:
        return old
    more = new if factor == 1.0 else new * factor
    return more if old is None else old + more
