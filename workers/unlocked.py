"""The loop of a worker whose stage runs on guesses of its inputs: it draws the raw batches, and waits for nobody.

    links       activations_in -> [stage: learns that this was to guess] -> activations_out
                  gradients_out <- [stage] <- gradients_in
    own draws   raw batches ------> [stage: guesses its input, runs, steps ahead]

    [1] let the stage learn from gradients, as in every loop
    [2] take what comes from above, in its order: batches teach the guess, tests and marks pass
    [3] unless something is in the way, draw a batch and step ahead

What comes from above is heard at once (free), or exactly `lag` steps later (exact); never later than that. Marks and
batches of an evaluation wait their turn behind it, so an evaluation finds the stage up to `lag` steps further.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace

from stepahead.pipeline import (
    Activation,
    Gradient,
    Mark,
    MarkKind,
    Message,
    MessageError,
    Metric,
    PeerEndedError,
    Stage,
)

from .channels import Sender
from .loop import Lag, Links, Loop, Progress
from .spans import Spans, Wait

__all__ = ["UnlockedLoop"]

BARRIERS = (MarkKind.SETTLE, MarkKind.STOP)


class UnlockedLoop(Loop):
    """Drives one stage that has synthetic inputs.

    Args:
        draws: The raw batches of the run, from the first.
        make_stage, links, lag, spans, metrics, progress: As of every loop; the stage is made from a raw batch.
    """

    def __init__(
        self,
        draws: Iterator[Activation],
        make_stage: Callable[[Activation], Stage],
        links: Links,
        lag: Lag,
        spans: Spans,
        metrics: Mapping[str, Metric] | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(make_stage, links, lag, spans, metrics, progress)
        self._draws = draws
        self._above: deque[Message] = deque()
        """What has come from above and was not heard yet."""
        self._barrier: int | None = None
        """The steps after which the stage settles, once that is known."""
        self._heard = 0
        """Training batches heard from above."""
        self._all_came = False
        """Whether nothing more will come from there."""

    def run(self) -> Iterator[Wait | None]:
        while True:
            self._listen()
            if self._settling and not self._awaited():  # first: whoever stopped early is not to be asked for more
                if self.stage is not None:
                    self.stage.finish()
                if self._stopping:
                    return
                self._settling, self._barrier = False, self._next_barrier()
            elif (gradient := self._due_gradient()) is not None:
                yield from self._learn(gradient)
                yield None
            elif self._settling:
                yield "wait_gradient"
            elif self._above and self._is_due(self._above[0]):
                yield from self._handle(self._above.popleft())
                yield None
            elif (hindrance := self._hindrance()) is not None:
                yield hindrance
            else:
                yield (yield from self._draw())

    def _listen(self) -> None:
        """Take in what has come from above, so that its sender does not stand still for us."""
        room = self.lag.most + self.links.activations_in.capacity
        while not self._all_came and len(self._above) < room:
            if (message := self.links.activations_in.try_receive()) is None:
                return
            if isinstance(message, Gradient):
                raise MessageError(f"a Gradient came down on edge {message.edge}, where batches do")
            if isinstance(message, Mark) and message.kind in BARRIERS:
                self._barrier = self._barrier or message.step + 1
                self._all_came = message.kind is MarkKind.STOP
            self._above.append(message)

    def _next_barrier(self) -> int | None:
        """Return the steps that the next mark to settle at counts, if it has come."""
        marks = (message for message in self._above if isinstance(message, Mark) and message.kind in BARRIERS)
        return next((mark.step + 1 for mark in marks), None)

    def _is_due(self, message: Message) -> bool:
        """Return whether the stage has made the steps after which it is to hear a message."""
        steps = self.progress.steps
        if isinstance(message, Mark):
            return steps > message.step
        if isinstance(message, Activation) and not message.training:
            return steps >= message.step
        if self._is_at_barrier:  # also one of a batch that was never drawn here, for the end came early
            return True
        if self.lag.mode == "free":
            return steps > message.step
        return steps >= message.step + self.lag.most

    @property
    def _is_at_barrier(self) -> bool:
        return self._barrier is not None and self.progress.steps >= self._barrier

    def _hindrance(self) -> Wait | None:
        if self._is_at_barrier or self.progress.steps - self._heard >= self.lag.most:
            return "wait_input"
        return super()._hindrance()

    def _draw(self) -> Generator[Wait | None, None, Wait | None]:
        """Step ahead on the next raw batch; return why there is nothing to do, if there is no more."""
        batch = next(self._draws, None)
        if batch is None:
            return "wait_input"
        if self.stage is None:
            self.stage = self._make_stage(batch)
        yield from self._step_ahead(self.stage, replace(batch, edge=self.links.activations_in.edge))
        return None

    def _handle(self, message: Message) -> Iterator[Wait]:
        if not isinstance(message, Activation) or not message.training:
            yield from super()._handle(message)
            return
        self._heard += 1
        if self.stage is not None and message.step < self.progress.steps:
            self._spans.step = message.step
            self.stage.hear(message)

    def _sent(self, sender: Sender, message: Message) -> bool:
        try:
            return super()._sent(sender, message)
        except PeerEndedError:
            if sender is self.links.gradients_out:  # the stage above stopped early, and has no use for it
                return True
            raise

    def _awaited(self) -> bool:
        """Return whether an answer is still to come; whoever was stopped early is not asked for more."""
        last = self.progress.steps if self._barrier is None else self._barrier
        return any(step < last for step in self._unanswered)
