"""Answers: what a stage tells the one above it about a batch. Most want the gradient at its input; not all do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .errors import UsageError
from .messages import Gradient, GradientKind, edge_name

__all__ = ["Answer", "Answers", "Asked"]


class Answer(Enum):
    """What the stage above asks for."""

    GRADIENT = "the gradient at its input"
    OUTPUT = "the gradient at its output"
    ERROR = "the error at the model's output, handed up"
    VALUES = "what it takes the samples' losses for"
    GRADIENT_AND_VALUES = "the gradient at its input, and what it takes the samples' losses for"

    @property
    def has_gradient(self) -> bool:
        """Whether the first of what comes is the gradient at the asking stage's output."""
        return self in (Answer.GRADIENT, Answer.GRADIENT_AND_VALUES)

    def example(self, delta: Tensor) -> tuple[Tensor, ...]:
        """Return something of the shape of what comes, given that of a gradient."""
        losses = delta.new_ones(len(delta))
        return {Answer.VALUES: (losses,), Answer.GRADIENT_AND_VALUES: (delta, losses)}.get(self, (delta,))


@dataclass(frozen=True, slots=True)
class Asked:
    """What the stage above one asks of it: which answer, and to which batches."""

    answer: Answer = Answer.GRADIENT
    every: int = 1
    """It learns from the answer to each n-th batch; from none if this is 0."""
    truth_every: int = 0
    """It awaits the truth of each n-th batch; of none if this is 0."""

    def at(self, step: int) -> bool:
        """Return whether it has a use for the answer to a step's batch."""
        return any(every > 0 and step % every == 0 for every in (self.every, self.truth_every))


class Answers:
    """What one stage tells the one above it; the first has nobody to tell.

    Args:
        asked: What the one above asks for.
        index, stages: Which stage it is, and of how many.
        device: The stage's.
    """

    def __init__(self, asked: Asked, *, index: int, stages: int, device: torch.device) -> None:
        self._asked = asked
        self._edge = edge_name(index - 1, index)
        self._is_first, self._is_last = index == 0, index == stages - 1
        self._device = device

    @property
    def hands_up(self) -> bool:
        """Whether what comes from below goes up as it is, before the stage's own backward pass: that is for all."""
        return self._asked.answer is Answer.ERROR and not self._is_first and not self._is_last

    def have_use(self, step: int) -> bool:
        """Return whether the one above has a use for what it would be told of a step's batch."""
        return not self._is_first and self._asked.at(step)

    def say(self, step: int, kind: GradientKind, *tensors: Tensor) -> Gradient:
        return Gradient(edge=self._edge, step=step, tensors=tensors, kind=kind)

    def say_nothing(self, step: int) -> Iterator[Gradient]:
        """Let the one above know that it gets no gradient of a batch."""
        if not self._is_first and not self.hands_up:
            yield self.say(step, GradientKind.NONE, torch.empty(0, device=self._device))

    def say_not_finite(self, step: int, h_in: Tensor) -> Iterator[Gradient]:
        """Let the one above know that something is not finite in a batch, by a gradient that is not."""
        if not self._is_first and not self.hands_up:
            yield self.say(step, GradientKind.TARGET, torch.full_like(h_in, torch.nan))

    def tell(
        self, step: int, kind: GradientKind, up: Tensor, d: Tensor | None, values: Callable[[], Tensor]
    ) -> Iterator[Gradient]:
        """Tell it after a backward pass from `d` to `up`, unless that has been handed up before; `kind` is what the
        gradients are worth."""
        if told := self._told(up, d, values):
            yield self.say(step, kind if self._asked.answer is Answer.GRADIENT else GradientKind.TARGET, *told)

    def _told(self, up: Tensor, d: Tensor | None, values: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        match self._asked.answer:
            case Answer.GRADIENT:
                return (up,)
            case Answer.VALUES:
                return (values(),)
            case Answer.GRADIENT_AND_VALUES:
                return (up, values())
            case Answer.OUTPUT:
                if d is None:
                    raise UsageError("feedback alignment asks for the gradient at the output below, which has none")
                return (d,)
            case Answer.ERROR:
                return (d,) if self._is_last and d is not None else ()
