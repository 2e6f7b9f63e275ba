"""Answers: what a stage tells the one above it about a batch. Most want the gradient at its input; not all do."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from torch import Tensor

from .errors import UsageError

__all__ = ["Answer", "answer_with"]


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


def answer_with(
    answer: Answer, up: Tensor, d: Tensor | None, values: Callable[[], Tensor], *, is_last: bool
) -> tuple[Tensor, ...]:
    """Return what to send after a backward pass from `d` to `up`; nothing where it has been handed up before."""
    match answer:
        case Answer.GRADIENT:
            return (up,)
        case Answer.VALUES:
            return (values(),)
        case Answer.GRADIENT_AND_VALUES:
            return (up, values())
        case Answer.OUTPUT:
            if d is None:
                raise UsageError("feedback alignment asks for the gradient at the next group's output, which has none")
            return (d,)
        case Answer.ERROR:
            return (d,) if is_last and d is not None else ()
