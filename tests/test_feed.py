"""The feed: which batches come in which order, when the pipeline evaluates, and how it ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from stepahead.pipeline import Activation, Batch, Mark, MarkKind, Message, UsageError
from stepahead.workers import Feed


def batch(value: float) -> Batch:
    return torch.full((2, 1), value), torch.zeros(2, dtype=torch.int64)


def drawn(messages: list[Message]) -> list[float]:
    """The first value of each training batch."""
    return [float(m.tensors[0][0]) for m in messages if isinstance(m, Activation) and m.training]


def shape(messages: list[Message]) -> str:
    """t: a training batch, e: a test batch, > to settle, E and S: marks."""
    letters = {MarkKind.EVALUATE: "E", MarkKind.SETTLE: ">", MarkKind.STOP: "S"}
    return "".join(letters[m.kind] if isinstance(m, Mark) else "et"[getattr(m, "training", False)] for m in messages)


def test_epochs_end_and_steps_end() -> None:
    data = [batch(1), batch(2), batch(3)]
    assert drawn(list(Feed(train=data, epochs=2).messages())) == [1, 2, 3, 1, 2, 3]
    assert drawn(list(Feed(train=data, steps=5).messages())) == [1, 2, 3, 1, 2]
    assert drawn(list(Feed(train=data, steps=5, epochs=1).messages())) == [1, 2, 3]
    steps = [m.step for m in Feed(train=data, steps=5).messages() if isinstance(m, Activation)]
    assert steps == [0, 1, 2, 3, 4]


def test_after_a_pass_it_knows_how_many_batches_there_will_be() -> None:
    def data(epoch: int) -> list[Batch]:
        return [batch(1)] * (4 + epoch)

    heard: list[int] = []
    list(Feed(train=data, epochs=3).messages(expect=heard.append))
    assert heard == [12, round(9 / 2 * 3), 4 + 5 + 6]
    heard.clear()
    list(Feed(train=iter([batch(1)] * 3), epochs=3).messages(expect=heard.append))
    assert heard == [9, 3]
    heard.clear()
    list(Feed(train=data, steps=5).messages(expect=heard.append))
    assert heard == []
    list(Feed(train=data, epochs=3, steps=11).messages(expect=heard.append))
    assert heard == [11, 11]


def test_evaluations_and_the_stop_follow_their_batches() -> None:
    data, test = [batch(1)] * 5, [batch(9)] * 2
    assert shape(list(Feed(train=data, test=test, epochs=1, evaluate_every=2).messages())) == "tteeEtteeEt>eeES"
    assert shape(list(Feed(train=data, test=test, epochs=1).messages())) == "ttttt>eeES"
    assert shape(list(Feed(train=data[:4], test=test, epochs=1, evaluate_every=2).messages())) == "tteeEtt>eeES"
    assert shape(list(Feed(train=data, epochs=1, evaluate_every=2).messages())) == "tttttS"
    marks = [m for m in Feed(train=data, test=test, epochs=1, evaluate_every=2).messages() if isinstance(m, Mark)]
    assert [mark.step for mark in marks] == [1, 3, 4, 4, 4]


def test_a_stop_ends_it_at_the_next_batch() -> None:
    told = iter([False, False, False, False, True, True, True])
    endless = (batch(step) for step in count())
    assert shape(list(Feed(train=endless, test=[batch(9)]).messages(lambda: next(told)))) == "ttttS"


def test_an_iterator_is_run_through_once() -> None:
    used_up = iter([batch(1), batch(2)])
    assert drawn(list(Feed(train=used_up, epochs=5).messages())) == [1, 2]


def test_no_batch_is_drawn_that_is_not_needed() -> None:
    def data(epoch: int) -> Iterator[Batch]:
        yield batch(1)
        yield batch(2)
        raise AssertionError("asked for a third")

    assert drawn(list(Feed(train=data, steps=2).messages())) == [1, 2]


def test_shuffling_is_the_seeds_and_differs_by_epoch() -> None:
    loader = DataLoader(TensorDataset(torch.arange(8.0)[:, None], torch.zeros(8)), batch_size=1, shuffle=True)
    runs = [drawn(list(Feed(train=loader, epochs=2, seed=seed).messages())) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert sorted(runs[0][:8]) == sorted(runs[0][8:]) == list(range(8))
    assert runs[0][:8] != runs[0][8:]


def test_evaluations_do_not_disturb_what_is_drawn() -> None:
    class Noisy(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return torch.rand(1) + random.random(), torch.zeros(())

    data, test = DataLoader(Noisy(), shuffle=True), DataLoader(Noisy(), shuffle=True)
    without = drawn(list(Feed(train=data, epochs=1).messages()))
    torch.manual_seed(5)
    messages = list(Feed(train=data, test=test, epochs=1, evaluate_every=2).messages())
    assert drawn(messages) == without
    assert len(messages) == 6 + 3 * 7 + 2


def test_a_sampler_is_told_the_epoch() -> None:
    class Sampler(RandomSampler):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    dataset = TensorDataset(torch.ones(2, 1), torch.zeros(2))
    list(Feed(train=DataLoader(dataset, sampler=Sampler(dataset)), epochs=3).messages())
    assert Sampler.epochs == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "the training data gave no batch"),
        ([torch.ones(2)], "the training data gave a Tensor; a batch must be a pair of tensors: input and label"),
        ([(torch.ones(2),)], "the training data gave 1 things"),
        ([{"x": 1}], "the training data gave a dict"),
        ([(torch.ones(2), [1, 2])], "the training data gave a pair of Tensor and list"),
    ],
)
def test_what_is_no_batch_is_one_sentence(data: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(Feed(train=data, epochs=1).messages())
    assert said in str(caught.value)


def test_test_data_that_is_used_up_is_named() -> None:
    feed = Feed(train=[batch(1)] * 4, test=iter([batch(2)]), epochs=1, evaluate_every=2)
    with pytest.raises(UsageError, match="the test data gave no batch; give a loader or a list, not an iterator"):
        list(feed.messages())
