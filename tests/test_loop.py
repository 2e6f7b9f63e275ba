"""The loop: the reference to the bit in exact mode, and no deadlock, gap or duplicate in whatever order they run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import (
    SIGNALS,
    TRUTHS,
    Batch,
    assert_equal,
    cdni,
    make_stages,
    mlp,
    rows,
    sequences,
    state,
    token_loss,
    transformer,
)
from pipelines import Pipeline

from stepahead.pipeline import (
    Activation,
    Gradient,
    GradientKind,
    Mark,
    MarkKind,
    Message,
    MessageError,
    Reference,
    Stage,
    StageTruth,
    Truth,
    UsageError,
    accuracy,
    cut_model,
)
from stepahead.workers import Feed, Lag
from stepahead.workers.ledger import compare


def feed(batches: list[Batch], **settings: Any) -> list[Message]:
    return list(Feed(train=batches, epochs=1, **settings).messages())


class Stub:
    """Passes batches on and answers them, some only when it has their truth, and notes in which order things happen."""

    def __init__(self, index: int, stages: int, waits: bool, truth: StageTruth) -> None:
        self.index, self.is_last, self.waits = index, index == stages - 1, waits
        self.stages, self.truth = stages, truth
        self.is_first = index == 0
        self.inputs = None
        self.events: list[tuple[str, int]] = []
        self.loss = torch.zeros(())

    def step_ahead(self, batch: Activation) -> Iterator[Activation | Gradient]:
        self.events.append(("forward", batch.step))
        if not self.is_last:
            yield Activation(edge=f"{self.index}>{self.index + 1}", step=batch.step, tensors=batch.tensors)
        if not self.waits and not self.truth.owes(batch.step):
            yield from self._answer(batch.step)

    def learn(self, gradient: Gradient) -> Iterator[Activation | Gradient]:
        self.events.append(("learn", gradient.step))
        if self.waits or (self.truth.awaits(gradient.step) and self.truth.owes(gradient.step)):
            yield from self._answer(gradient.step)

    def finish(self) -> None:
        self.events.append(("finish", 0))

    def evaluate(self, batch: Activation) -> Activation:
        return Activation(edge=f"{self.index}>{self.index + 1}", step=batch.step, tensors=batch.tensors, training=False)

    def _answer(self, step: int) -> Iterator[Gradient]:
        if not self.is_first:
            edge = f"{self.index - 1}>{self.index}"
            yield Gradient(edge=edge, step=step, tensors=(torch.zeros(1),), kind=GradientKind.TARGET)


def stubs(waits: list[bool], truth: Truth | None = None) -> list[Stage]:
    last, truth = len(waits) - 1, truth or Truth()
    made = [Stub(index, last + 1, wait and index < last, truth.at(index, last + 1)) for index, wait in enumerate(waits)]
    return cast(list[Stage], made)


def stub_messages(count: int, settle_at: int | None = None) -> list[Message]:
    """So many batches and a stop; settled before the batch of a step."""
    batches: list[Message] = [Activation(edge="data>0", step=step, tensors=(torch.zeros(1),)) for step in range(count)]
    stop = Mark(edge="data>0", step=count - 1, kind=MarkKind.STOP)
    if settle_at is None:
        return [*batches, stop]
    settle = Mark(edge="data>0", step=max(settle_at - 1, 0), kind=MarkKind.SETTLE)
    return [*batches[:settle_at], settle, *batches[settle_at:], stop]


RECIPES = {name: {"signal": signal} for name, signal in SIGNALS.items()} | {
    name: {"signal": cdni, "truth": truth} for name, truth in TRUTHS.items()
}


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_exact_is_the_reference_to_the_bit(name: str, stages: int) -> None:
    batches, test = [*rows(19), *rows(1, size=5)], rows(2)
    one, other = (make_stages(groups, batches[0], **RECIPES[name]) for groups in twins(stages))
    reference = Reference(one, lag=3)
    evaluations: list[dict[str, float]] = []
    for report in reference.train(batches):
        if report.step in (4, 9, 14):
            evaluations.append(reference.evaluate(test, {"accuracy": accuracy}))
    evaluations.append(reference.evaluate(test, {"accuracy": accuracy}))  # of the weights that it ends with

    pipeline = Pipeline(
        other, feed(batches, test=test, evaluate_every=5), Lag("exact", 3), metrics={"accuracy": accuracy}
    )
    pipeline.run(random.Random(stages).randrange)

    assert_equal(state([stage.group for stage in one]), state([stage.group for stage in other]))
    assert_equal_signals(one, other)
    assert pipeline.loops[-1].progress.evaluations == list(zip([5, 10, 15, 20], evaluations, strict=True))


def test_exact_is_the_reference_for_a_transformer_with_dropout() -> None:
    batches = sequences(6)
    model = transformer()
    one, other = (
        make_stages(cut_model(deepcopy(model), 3), batches[0], signal=cdni, loss=token_loss) for _ in range(2)
    )
    list(Reference(one, lag=2).train(batches))
    Pipeline(other, feed(batches), Lag("exact", 2)).run(random.Random(0).randrange)
    assert_equal(state([stage.group for stage in one]), state([stage.group for stage in other]))


def test_the_order_of_turns_does_not_change_an_exact_run() -> None:
    batches = rows(8)
    ends: list[list[torch.Tensor]] = []
    for seed in range(5):
        torch.manual_seed(1)
        stages = make_stages(cut_model(mlp(), 3), batches[0], signal=cdni)
        Pipeline(stages, feed(batches), Lag("exact", 4), window=1 + seed % 3).run(random.Random(seed).randrange)
        ends.append(state([stage.group for stage in stages]))
    for end in ends[1:]:
        assert_equal(ends[0], end)


@settings(max_examples=1000)
@given(data=st.data())
def test_no_interleaving_deadlocks_loses_or_doubles(data: st.DataObject) -> None:
    """Any turns, windows down to 1, locked stages among free ones or truths that are passed on, settled on the way."""
    stages = data.draw(st.integers(1, 5), "stages")
    every = data.draw(st.integers(0, 3), "every")
    waits = [not every and data.draw(st.booleans(), f"stage {stage} waits") for stage in range(stages)]
    steps, window = data.draw(st.integers(1, 12), "steps"), data.draw(st.integers(1, 3), "window")
    settle_at = data.draw(st.integers(1, steps), "settled at")
    mode = data.draw(st.sampled_from(["free", "exact"]), "mode")
    lag = Lag(cast(Any, mode), data.draw(st.integers(1, 5), "lag"))
    rng = random.Random(data.draw(st.integers(0, 2**32), "turns"))
    favourite = data.draw(st.integers(0, stages), "favourite")

    def choose(count: int) -> int:
        return favourite % count if rng.random() < 0.5 else rng.randrange(count)

    made = stubs(waits, Truth(use="true-up", every=every) if every else None)
    pipeline = Pipeline(made, stub_messages(steps, settle_at), lag, window=window)
    pipeline.run(choose)

    answers = steps * (stages - 1)
    assert compare(pipeline.entries) == (steps + 2) * stages + answers
    for stage, loop in zip(cast(list[Stub], made), pipeline.loops, strict=True):
        assert_lag_holds(stage, loop.lag, settle_at)
        assert loop.progress.steps == steps


def assert_lag_holds(stage: Stub, lag: Lag, settle_at: int) -> None:
    """All steps in order, each learnt from once; never later than the lag says, and if exact never earlier.

    Nothing is open when the stage settles and when it ends: what is due by then is learnt from early.
    """
    forwards = [step for what, step in stage.events if what == "forward"]
    learns = [step for what, step in stage.events if what == "learn"]
    assert forwards == list(range(len(forwards)))
    for of_one_kind in (True, False):
        kind = [step for step in learns if stage.truth.awaits(step) == of_one_kind]
        due = [step for step in forwards if stage.truth.awaits(step) == of_one_kind]
        assert kind == ([] if stage.is_last else due)
    unlearnt: list[int] = []
    settled: list[int] = []
    made = 0
    for what, step in stage.events:
        if what == "forward":
            late = [step - earlier for earlier in unlearnt if step - earlier >= lag.of(cast(Stage, stage), earlier)]
            assert stage.is_last or not (unlearnt if stage.waits else late)
            unlearnt.append(step)
            made += 1
        elif what == "learn":
            unlearnt.remove(step)
            draining = made in (settle_at, len(forwards))
            if lag.mode == "exact" and not stage.waits and not draining:
                assert made == step + lag.of(cast(Stage, stage), step)
        else:
            assert stage.is_last or not unlearnt
            settled.append(made)
    assert settled == [settle_at, len(forwards)]


def test_the_lag_that_was_seen_is_counted() -> None:
    made = stubs([False, False, False])
    pipeline = Pipeline(made, stub_messages(20), Lag("exact", 4))
    pipeline.run(random.Random(0).randrange)
    lags = pipeline.loops[0].progress.lags
    assert lags[4] == 17  # the last three are learnt from while draining
    assert sum(lags.values()) == 20
    assert max(lags) == 4
    assert not pipeline.loops[2].progress.lags


def test_messages_in_the_wrong_direction_are_refused() -> None:
    stray = Gradient(edge="data>0", step=0, tensors=(torch.zeros(1),), kind=GradientKind.TARGET)
    with pytest.raises(MessageError, match="a Gradient came down on edge data>0, where batches do"):
        Pipeline(stubs([False, False]), [stray], Lag("free", 8)).run(lambda count: 0)


def test_lags_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="the lag is 'late'; it must be 'exact' or 'free'"):
        Lag(cast(Any, "late"), 3)
    with pytest.raises(UsageError, match="the most steps that a gradient may lag are 0"):
        Lag("exact", 0)


def twins(stages: int) -> Iterator[Any]:
    model = mlp()
    return (cut_model(deepcopy(model), stages) for _ in range(2))


def assert_equal_signals(one: list[Stage], other: list[Stage]) -> None:
    for left, right in zip(one, other, strict=True):
        if left.signal.state_dict():
            assert_equal(list(left.signal.state_dict().values()), list(right.signal.state_dict().values()))
