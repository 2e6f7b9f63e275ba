"""Virtual devices: parts of a step last as long as a device would take, by sleeping until it would be done.

Processes, links and schedules are real; so many stages can be measured on few cores, as long as what is really computed
is short. A stage's forward and backward pass and its step last `stage_ms` together; what it does besides (predictor,
batches run again) is charged by its measured share of that.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from stepahead.pipeline import Part, seed_for

from .spans import Spans

__all__ = ["Pace", "Paced"]

AT_ONCE = 0.002
"""Seconds: what begins so soon after what was before has waited for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the parts of one stage's step last."""

    stage: int
    seconds: Mapping[Part, float]
    """By part, for a whole batch."""
    inputs_share: float = 0.5
    """Of a backward pass, what the gradient of the input takes, where that of the weights comes by itself."""
    slow: float = 1.0
    """How many times as long all of it lasts."""
    jitter: float = 0.0
    """Each lasts longer or shorter by up to this share: the same at the same step, whatever the schedule."""
    seed: int = 0

    def lasts(self, part: Part, step: int) -> float:
        """Return the seconds that a part lasts at a step."""
        drawn = random.Random(seed_for(self.seed, "jitter", self.stage, step, part)).uniform(-1.0, 1.0)
        return self.seconds.get(part, 0.0) * self.slow * (1.0 + self.jitter * drawn)


@dataclass(slots=True)
class Paced:
    """Wraps the parts of a stage's step: times them, and lets them last."""

    spans: Spans
    pace: Pace
    sleep: Callable[[float], None] = time.sleep
    _lasted: dict[Part, int] = field(default_factory=dict[Part, int])
    """The step at which each part was last: what comes in two pieces lasts once."""
    _ended: float = -math.inf
    """When the last part was over."""
    _late: float = 0.0
    """By how much a sleep was too long: a device would have begun the next part by then."""

    def __call__(self, part: Part) -> AbstractContextManager[None]:
        again = self._lasted.get(part) == self.spans.step
        self._lasted[part] = self.spans.step
        return self.piece(part, 0.0 if again else 1.0)

    def due(self, begun: float, seconds: float) -> float:
        """Return when a device would have done what begins now: earlier by what the sleep before was too long."""
        return begun + seconds - (self._late if begun - self._ended < AT_ONCE else 0.0)

    def wait(self, due: float, overrun: float) -> None:
        """Sleep until then. What the work itself took too long is lost, as it should be: no device makes up for it."""
        if (left := due - time.monotonic()) > 0:
            self.sleep(left)
        self._ended = time.monotonic()
        self._late = max(self._ended - due - overrun, 0.0)

    def piece(self, part: Part, share: float) -> AbstractContextManager[None]:
        """Wrap a share of a part: that of a micro-batch."""
        return _Lasting(self, part, self.pace.lasts(part, self.spans.step) * share)


class _Lasting:
    """Times what is inside, and what is left until it has lasted so long."""

    __slots__ = ("_begun", "_due", "_paced", "_seconds", "_span")

    def __init__(self, paced: Paced, part: Part, seconds: float) -> None:
        self._paced = paced
        self._seconds = seconds
        self._span = paced.spans(part)

    def __enter__(self) -> None:
        self._begun = time.monotonic()
        self._due = self._paced.due(self._begun, self._seconds)
        self._span.__enter__()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            took = time.monotonic() - self._begun
            self._paced.wait(self._due, max(took - self._seconds, 0.0))
        self._span.__exit__(None, None, None)
