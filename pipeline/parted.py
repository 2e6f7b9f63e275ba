"""The signal of a stage that passes several values on: a guess for each of them by itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .bundles import Bundle
from .errors import UsageError
from .groups import Group
from .quality import QualityReading
from .signals import Needs, Signal, SignalRecipe, Silent, delayed, locked, silent
from .synthesis import Synthetic

__all__ = ["Parted", "signal_of"]


class Parted(Signal):
    """Synthetic gradients of several values: each has a predictor that suits it, unless nothing before it learns.

    Args:
        bundle: What crosses the cut.
        make: Makes the signal of one value.
        h, y: Examples of the whole and of the label.
    """

    def __init__(self, bundle: Bundle, make: SignalRecipe, h: Tensor, y: Tensor | None) -> None:
        super().__init__()
        self.bundle = bundle
        self.parts = nn.ModuleList()
        for value, part in zip(bundle.values, bundle.split(h), strict=True):
            signal = make(part, y) if value.learns else Silent()
            if not isinstance(signal, (Synthetic, Silent)) or signal.needs is not Needs.NOTHING:
                raise UsageError(
                    f"{bundle} cross one cut, which suits signals that guess, locked, delayed and silent ones, "
                    f"not {type(signal).__name__}"
                )
            self.parts.append(signal)
        self.draws = any(signal.draws for signal in self._signals())

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        parts = self.bundle.split(h)
        guesses = [signal.gradient(part, y) for signal, part in zip(self._signals(), parts, strict=True)]
        return self._joined(parts, guesses)

    def wants(self, step: int) -> bool:
        return any(signal.wants(step) for signal in self._signals())

    @property
    def pulls(self) -> bool:
        return any(signal.pulls for signal in self._signals())

    def learn(self, h: Tensor, y: Tensor | None, delta: Tensor, step: int, *more: Tensor) -> Tensor | None:
        parts, deltas = self.bundle.split(h), self.bundle.split(delta)
        pulls = [
            signal.learn(part, y, told, step) if signal.wants(step) else None
            for signal, part, told in zip(self._signals(), parts, deltas, strict=True)
        ]
        return self._joined(parts, pulls) if any(pull is not None for pull in pulls) else None

    def end_step(self) -> None:
        for signal in self._signals():
            signal.end_step()

    @property
    def quality(self) -> QualityReading | None:
        """Of the worst guess among those that have been told of a gradient."""
        readings = [reading for signal in self._signals() if (reading := signal.quality) and reading.relative_error]
        return min(readings, key=lambda reading: reading.cosine, default=None)

    def _signals(self) -> Iterator[Signal]:
        for signal in self.parts:
            assert isinstance(signal, Signal)
            yield signal

    def _joined(self, parts: list[Tensor], gradients: list[Tensor | None]) -> Tensor:
        """Return gradients one behind the other, zero where there is none."""
        pairs = zip(parts, gradients, strict=True)
        return self.bundle.join([torch.zeros_like(part) if each is None else each for part, each in pairs])


def signal_of(group: Group, make: SignalRecipe, h: Tensor, y: Tensor | None) -> Signal:
    """Return the signal of a group, which may pass several values on."""
    below = group.below
    if below is None or below.is_single or make in (locked, delayed, silent):
        return make(h, y)
    return Parted(below, make, h, y)
