"""Hindsight: what a stage makes of a batch that it has stepped on, when what it is worth comes from below.

    true_up    the truth: what the step lacked, for the next one to make up for; the truth of the stage above
    pull       what its predictor missed, flowing into the group too (SG + prop)

Both need the batch once more: from its input, with today's weights, or from the graph of then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from .finite import are_finite
from .kept import KeptBatch
from .passes import Pass, Passes
from .signals import Needs, Signal
from .truth import Repair, StageTruth
from .updates import values_of

__all__ = ["Hindsight"]

MEASURED = 64
"""Of so many truths that repair a step, one is used to measure what the step missed: it takes a backward pass more."""


class Hindsight:
    """One stage's.

    Args:
        passes: The stage's.
        truth: What it does with the truth.
        signal: What it steps on.
        trained: Whether it steps at all.
        not_finite: Told the step, and what in it is not finite.
    """

    def __init__(
        self,
        passes: Passes,
        truth: StageTruth,
        signal: Signal,
        *,
        trained: bool,
        not_finite: Callable[[int, Iterable[tuple[str, Tensor]]], None],
    ) -> None:
        self.repair = Repair(passes.weights, truth.spread)
        self.missed: Tensor | None = None
        """Length of what a step lacked over that of the true gradient, when it was last measured: the monitor of paper
        B's proposition 2. Below 1 the step pointed downhill."""
        self._repaired = 0
        self._passes, self._truth, self._signal = passes, truth, signal
        self._trained = trained
        self._not_finite = not_finite

    def reruns(self, step: int) -> bool:
        """Return whether something is made of the batch's truth: a step, a repair, what the stage above is owed."""
        is_late = self._signal.needs is Needs.TRUTH
        return self._truth.awaits(step) and (is_late or self._repairs or self._truth.owes(step))

    def keeps_graph(self, step: int) -> bool:
        """Return whether the batch will go backward once more through the graph of then."""
        return self._truth.keeps_graph and self.reruns(step)

    def remains(
        self, step: int, batch: KeptBatch, forward: Pass, d: Tensor | None, owed: Tensor | None
    ) -> KeptBatch | None:
        """Return what is kept of a batch that was stepped on, until its gradient comes."""
        if not self.reruns(step):
            kept = KeptBatch(batch.h, batch.label)
            if self._signal.pulls:
                kept.h_in, kept.carried = forward.h_in.detach(), forward.carried
            return kept if self._signal.wants(step) else None
        kept = KeptBatch(batch.h, batch.label)
        if self._truth.use == "true-up":
            kept.guess, kept.said = d, owed if self._truth.relay == "sum" else None
        if self.keeps_graph(step):
            kept.forward = forward
        else:
            kept.h_in, kept.carried = forward.h_in.detach(), forward.carried
        return kept

    def true_up(self, step: int, batch: KeptBatch, delta: Tensor) -> Tensor | None:
        """Take in what the step on this batch lacks; return the truth for the stage above, if it is owed one."""
        owes = self._truth.owes(step)
        repairs = self._repairs and not batch.refused
        forward = batch.forward or self._passes.again(batch.kept_input, step, batch.carried)
        up: Tensor | None = None
        if owes and (self._truth.relay == "again" or not repairs):
            (up,) = self._passes.gradients(forward, [forward.h_in], delta, batch.label, whole=True, retain=repairs)
        if repairs:
            true = self._true_gradient(forward, delta, batch.label)
            asked = forward.weights if up is not None or not owes else [*forward.weights, forward.h_in]
            found = self._passes.gradients(forward, asked, delta if batch.guess is None else delta - batch.guess)
            missing, part = found[: len(forward.weights)], found[len(forward.weights) :]
            if self._add(step, missing, self._truth.every) and true is not None:
                self.missed = _length(missing) / true
            if part:
                up = part[0] if batch.said is None or part[0] is None else batch.said + part[0]
        if not owes:
            return None
        return torch.zeros_like(forward.h_in) if up is None else up

    def pull(self, step: int, batch: KeptBatch, gradient: Tensor) -> None:
        """Take in a gradient at the batch's output that the next step is to make too."""
        if self._trained and not batch.refused:
            forward = self._passes.again(batch.kept_input, step, batch.carried)
            self._add(step, self._passes.gradients(forward, forward.weights, gradient), 1.0)

    @property
    def _repairs(self) -> bool:
        return self._truth.use == "true-up" and self._trained

    def _add(self, step: int, missing: Sequence[Tensor | None], factor: float) -> bool:
        """Let the next step make up for what is missing, if that is finite; return whether it is."""
        if finite := are_finite([values_of(gradient) for gradient in missing if gradient is not None]):
            self.repair.add(missing, factor)
        else:
            self._not_finite(step, [("the repair of its step", each) for each in missing if each is not None])
        return finite

    def _true_gradient(self, forward: Pass, delta: Tensor, y: Tensor | None) -> Tensor | None:
        """Return the length of the true gradient at the weights, at times."""
        self._repaired += 1
        if self._repaired % MEASURED != 1:
            return None
        return _length(self._passes.gradients(forward, forward.weights, delta, y, whole=True, retain=True))


def _length(gradients: Sequence[Tensor | None]) -> Tensor:
    return nn.utils.get_total_norm([values_of(gradient) for gradient in gradients if gradient is not None])
