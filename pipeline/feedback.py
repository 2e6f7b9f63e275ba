"""Feedback: a fixed map of what comes from below, in place of the weights that backprop would go back through.

    signal               comes from below                            through
    FeedbackAlignment    the gradient at the next group's output     a random matrix
    DirectFeedback       the error at the model's output             a random matrix
    Kickback             the error at the model's output             ones: each unit kicks for one output

Between groups the map is fixed; within a group of several layers, backprop goes on from what it gives. All of them
wait. Feedback alignment waits for one group after the other; the error at the output is handed up at once, past
groups that have not stepped yet.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .answers import Answer
from .signals import Asking, Needs, Signal, SignalRecipe, arrived

__all__ = [
    "DirectFeedback",
    "FeedbackAlignment",
    "Kickback",
    "direct_feedback",
    "feedback_alignment",
    "kickback",
]


class Feedback(Signal):
    """What all of them do alike. The map is made when it is seen what comes."""

    matrix: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", None)

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        came = arrived(waited)
        if self.matrix is None:
            self.matrix = self._make_matrix(*_widths(came, h), h)
        return _through(self.matrix, came, h)

    @abstractmethod
    def _make_matrix(self, inputs: int, outputs: int, h: Tensor) -> Tensor:
        """Return a matrix of shape [outputs, inputs]; draws are keyed by stage and step, as those of all signals."""


class FeedbackAlignment(Feedback):
    """The gradient at the output of the group below, through a random matrix."""

    needs = Needs.GRADIENT
    answer: ClassVar[Answer] = Answer.OUTPUT

    def _make_matrix(self, inputs: int, outputs: int, h: Tensor) -> Tensor:
        return _random(inputs, outputs, h)


class DirectFeedback(Feedback):
    """The error at the model's output, through a random matrix."""

    needs = Needs.OUTPUT_ERROR
    answer: ClassVar[Answer] = Answer.ERROR

    def _make_matrix(self, inputs: int, outputs: int, h: Tensor) -> Tensor:
        return _random(inputs, outputs, h)


class Kickback(Feedback):
    """The error at the model's output, as it is: unit j gets that of output j modulo their number.

    With one output that is kickback as it was made. With several, each has the units of its own.
    """

    needs = Needs.OUTPUT_ERROR
    answer: ClassVar[Answer] = Answer.ERROR
    draws = False

    def _make_matrix(self, inputs: int, outputs: int, h: Tensor) -> Tensor:
        unit = torch.arange(outputs, device=h.device)
        if h.dim() == 4 and outputs != h.shape[1]:  # all places of a channel kick for the same output
            unit = unit // h.shape[2:].numel()
        return F.one_hot(unit % inputs, inputs).to(h.dtype)


def _random(inputs: int, outputs: int, h: Tensor) -> Tensor:
    """Return such a matrix as the weights of a linear layer from h to what comes begin with, transposed."""
    bound = outputs**-0.5
    return torch.empty(outputs, inputs, dtype=h.dtype, device=h.device).uniform_(-bound, bound)


def _widths(came: Tensor, h: Tensor) -> tuple[int, int]:
    """Return how wide the two are: their features, where both have as many dimensions; else a sample's values."""
    if _are_images(came, h):
        return came.shape[1], h.shape[1]
    if _are_sequences(came, h):
        return came.shape[2], h.shape[2]
    return came[0].numel(), h[0].numel()


def _through(matrix: Tensor, came: Tensor, h: Tensor) -> Tensor:
    """Return what came, through the matrix, in the shape of h."""
    if _are_images(came, h):
        mapped = F.linear(came.movedim(1, -1), matrix).movedim(-1, 1)
        return F.interpolate(mapped, h.shape[2:]).contiguous()
    if _are_sequences(came, h):
        return F.linear(came, matrix)
    return F.linear(came.flatten(1), matrix).view_as(h)


def _are_images(came: Tensor, h: Tensor) -> bool:
    return came.dim() == h.dim() == 4


def _are_sequences(came: Tensor, h: Tensor) -> bool:
    return came.dim() == h.dim() == 3 and came.shape[1] == h.shape[1]


def _feedback_alignment(h: Tensor, y: Tensor | None) -> Signal:
    return FeedbackAlignment()


def _direct_feedback(h: Tensor, y: Tensor | None) -> Signal:
    return DirectFeedback()


def _kickback(h: Tensor, y: Tensor | None) -> Signal:
    return Kickback()


feedback_alignment: SignalRecipe = Asking(_feedback_alignment, FeedbackAlignment.answer)
"""The recipe of `FeedbackAlignment`."""
direct_feedback: SignalRecipe = Asking(_direct_feedback, DirectFeedback.answer)
"""The recipe of `DirectFeedback`."""
kickback: SignalRecipe = Asking(_kickback, Kickback.answer)
"""The recipe of `Kickback`."""
