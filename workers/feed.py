"""The feed: draws batches from a job's data, in a process of its own, and sends them to the first stage.

A process, not a thread of the first stage: a loader that shuffles or augments draws from torch's random stream, and so
do the layers; in one process they would tangle, and the loader would take the stage's time. The link in between holds
a few batches, so the loader works ahead. The feed also decides when the pipeline evaluates and stops, by marks behind
the batches they belong to.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from stepahead.pipeline import Activation, Batch, Mark, MarkKind, Message, UsageError, edge_name, seed_for

__all__ = ["Batches", "Feed", "drawing_apart", "seed_everything"]

Batches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""A pass over the data, such as a DataLoader; or a function that makes the pass of an epoch."""
EDGE = edge_name(-1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What goes into the pipeline, in order."""

    train: Batches
    test: Batches | None = None
    steps: int | None = None
    """At most so many batches."""
    epochs: int | None = None
    """At most so many passes over the data."""
    evaluate_every: int | None = None
    """Run the test batches after every so many steps, and in any case at the end."""
    seed: int = 0

    def messages(
        self, stopped: Callable[[], bool] = lambda: False, expect: Callable[[int], None] = lambda steps: None
    ) -> Iterator[Message]:
        """Yield all that is to be sent; when `stopped` turns true, only what ends the run.

        After each pass over the data `expect` hears how many training batches there will be in all, by what the passes
        so far had; if so many passes are asked for.
        """
        step = 0
        for x, y in self._batches(stopped, expect):
            # the evaluation due after the batch before: only now is that one known not to be the last
            if step and self.evaluate_every and step % self.evaluate_every == 0:
                yield from self._evaluation(step, stopped)
            yield Activation(edge=EDGE, step=step, tensors=(x,), label=y)
            step += 1
        last = max(step - 1, 0)
        if step and self.test is not None and not stopped():
            yield Mark(edge=EDGE, step=last, kind=MarkKind.SETTLE)  # the last figures are those of the weights saved
            yield from self._evaluation(step, stopped)
        yield Mark(edge=EDGE, step=last, kind=MarkKind.STOP)

    def draws(self) -> Iterator[Activation]:
        """Yield the training batches alone, for a stage that draws them itself."""
        batches = self._batches(lambda: False, lambda steps: None)
        for step, (x, y) in enumerate(batches):
            yield Activation(edge=EDGE, step=step, tensors=(x,), label=y)

    def _batches(self, stopped: Callable[[], bool], expect: Callable[[int], None]) -> Iterator[Batch]:
        drawn = 0
        for epoch in count() if self.epochs is None else range(self.epochs):
            seed_everything(seed_for(self.seed, "data", epoch))
            begun = drawn
            for item in _pass_of(self.train, epoch):
                if stopped():
                    return
                drawn += 1
                yield _checked(item, "training")
                if drawn == self.steps:  # ask for no batch that is not needed
                    return
            if drawn == 0:
                raise UsageError("the training data gave no batch")
            if drawn == begun:
                expect(drawn)
                return  # an iterator that can be run through only once
            if self.epochs is not None:
                expected = round(drawn / (epoch + 1) * self.epochs)
                expect(expected if self.steps is None else min(expected, self.steps))

    def _evaluation(self, step: int, stopped: Callable[[], bool]) -> Iterator[Message]:
        if self.test is None:
            return
        batches = 0
        with drawing_apart(seed_for(self.seed, "test", step)):
            for item in _pass_of(self.test, 0):
                x, y = _checked(item, "test")
                batches += 1
                yield Activation(edge=EDGE, step=step, tensors=(x,), label=y, training=False)
                if stopped():
                    return
        if not batches:
            raise UsageError("the test data gave no batch; give a loader or a list, not an iterator that is used up")
        yield Mark(edge=EDGE, step=max(step - 1, 0), kind=MarkKind.EVALUATE)


def seed_everything(seed: int) -> None:
    """Seed torch, `random`, and numpy where it is loaded."""
    torch.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)


@contextmanager
def drawing_apart(seed: int) -> Generator[None]:
    """Draw from streams of a seed's own: torch's, `random`'s and numpy's go on afterwards as if nothing had been."""
    numpy = sys.modules.get("numpy")
    of_random = random.getstate()
    of_numpy = None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            seed_everything(seed)
            yield
    finally:
        random.setstate(of_random)
        if numpy is not None and of_numpy is not None:
            numpy.random.set_state(of_numpy)


def _pass_of(batches: Batches, epoch: int) -> Iterable[Any]:
    if callable(batches):
        return batches(epoch)
    set_epoch = getattr(getattr(batches, "sampler", None), "set_epoch", None)
    if set_epoch is not None:  # torch's DistributedSampler shuffles by it
        set_epoch(epoch)
    return batches


def _checked(item: Any, what: str) -> Batch:
    if isinstance(item, (tuple, list)) and len(item) == 2:
        x, y = item
        if isinstance(x, Tensor) and (y is None or isinstance(y, Tensor)):
            return x, y
        got = f"a pair of {type(x).__name__} and {type(y).__name__}"
    else:
        got = f"{len(item)} things" if isinstance(item, (tuple, list)) else f"a {type(item).__name__}"
    raise UsageError(f"the {what} data gave {got}; a batch must be a pair of tensors: input and label")
