"""Virtual devices: parts of a step last as long as a device would take, by sleeping until it would be done.

Processes, links and schedules are real; so many stages can be measured on few cores, as long as what is really computed
is short. A stage's forward and backward pass and its step last `stage_ms` together; what it does besides (predictor,
batches run again) is charged by its measured share of that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from stepahead.pipeline import Part, seed_for

from .spans import Spans

__all__ = ["Pace", "Paced"]


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

    def __call__(self, part: Part) -> AbstractContextManager[None]:
        again = self._lasted.get(part) == self.spans.step
        self._lasted[part] = self.spans.step
        return self.piece(part, 0.0 if again else 1.0)

    def piece(self, part: Part, share: float) -> AbstractContextManager[None]:
        """Wrap a share of a part: that of a micro-batch."""
        return _Lasting(self, part, self.pace.lasts(part, self.spans.step) * share)


class _Lasting:
    """Times what is inside, and what is left until it has lasted so long."""

    __slots__ = ("_begun", "_paced", "_seconds", "_span")

    def __init__(self, paced: Paced, part: Part, seconds: float) -> None:
        self._paced = paced
        self._seconds = seconds
        self._span = paced.spans(part)

    def __enter__(self) -> None:
        self._begun = time.monotonic()
        self._span.__enter__()

    def __exit__(self, *error: object) -> None:
        left = self._begun + self._seconds - time.monotonic()
        if left > 0 and error[0] is None:
            self._paced.sleep(left)
        self._span.__exit__(None, None, None)
