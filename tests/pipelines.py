"""Whole pipelines in one thread: loops, in-memory links, and a scheduler that lets them take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from stepahead.pipeline import Activation, Message, Metric, Stage, edge_name
from stepahead.workers import Lag, LinkEnd, Links, Loop, Receiver, Sender, Spans, Wait, memory_link
from stepahead.workers.ledger import Entry, entry_of
from stepahead.workers.unlocked import UnlockedLoop

Choose = Callable[[int], int]
"""Picks one of so many."""


class Pipeline:
    """Loops joined by in-memory links, fed from a list of messages.

    Args:
        stages: Made beforehand.
        messages: What the feed sends.
        lag, window: As in a run.
        draws: What stages on guesses of their inputs draw.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        messages: Sequence[Message],
        lag: Lag,
        *,
        window: int = 2,
        metrics: dict[str, Metric] | None = None,
        draws: Sequence[Activation] = (),
    ) -> None:
        self.entries: list[Entry] = []
        self._draws = draws
        edges = [edge_name(index - 1, index) for index in range(len(stages))]
        down = [self._recorded(memory_link(edge, window)) for edge in edges]
        up = [self._recorded(memory_link(edge, window)) for edge in edges[1:]]
        self.loops = [
            self._loop(stage, index, len(stages), down, up, lag, metrics or {}) for index, stage in enumerate(stages)
        ]
        self._feed = self._send_all(down[0][0], deque(messages))
        self.ends: list[LinkEnd] = [end for link in [*down, *up] for end in link]

    def run(self, choose: Choose) -> None:
        """Let feed and loops take turns as `choose` says, until all are through."""
        try:
            self._take_turns(choose)
        finally:
            for end in self.ends:
                end.close()

    def _take_turns(self, choose: Choose) -> None:
        actors: list[Iterator[Wait | None]] = [self._feed, *(self._to_the_end(loop) for loop in self.loops)]
        idle: set[int] = set()
        while actors:
            awake = [index for index in range(len(actors)) if index not in idle]
            assert awake, f"deadlock: all {len(actors)} that are left wait"
            index, before = awake[choose(len(awake))], len(self.entries)
            try:
                wait = next(actors[index])
            except StopIteration:
                del actors[index]
                idle.clear()
                continue
            if len(self.entries) > before:
                idle.clear()  # what went over a link may be what another one waits for
            if wait is not None:
                idle.add(index)

    @staticmethod
    def _to_the_end(loop: Loop) -> Iterator[Wait | None]:
        """Run a loop, and as its process would, close its ends when it is through."""
        yield from loop.run()
        links = loop.links
        for end in (links.activations_in, links.activations_out, links.gradients_in, links.gradients_out):
            if end is not None:
                end.close()

    def _loop(
        self,
        stage: Stage,
        index: int,
        stages: int,
        down: list[tuple[Sender, Receiver]],
        up: list[tuple[Sender, Receiver]],
        lag: Lag,
        metrics: dict[str, Metric],
    ) -> Loop:
        last = index == stages - 1
        links = Links(
            activations_in=down[index][1],
            activations_out=None if last else down[index + 1][0],
            gradients_in=None if last else up[index][1],
            gradients_out=None if index == 0 else up[index - 1][0],
        )

        def ready(batch: Activation) -> Stage:
            return stage

        if stage.inputs is not None:
            return UnlockedLoop(iter(self._draws), ready, links, lag, Spans(), metrics)
        return Loop(ready, links, lag, Spans(), metrics)

    def _recorded(self, link: tuple[Sender, Receiver]) -> tuple[Sender, Receiver]:
        sender, receiver = link
        sender.on_message = lambda number, message: self.entries.append(entry_of("sent", number, message))
        receiver.on_message = lambda number, message: self.entries.append(entry_of("received", number, message))
        return link

    @staticmethod
    def _send_all(sender: Sender, messages: deque[Message]) -> Iterator[Wait | None]:
        while messages:
            if sender.try_send(messages[0]):
                messages.popleft()
                yield None
            else:
                yield "wait_credit"
