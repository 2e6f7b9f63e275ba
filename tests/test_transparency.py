"""The proof of a parallel trainer is equality with the plain one, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from nets import (
    CLASSES,
    Batch,
    adam,
    assert_equal,
    cdni,
    cnn,
    images,
    make_stages,
    mlp,
    plain_backprop,
    rows,
    sequences,
    state,
    token_loss,
    transformer,
)
from torch import Tensor, nn

from stepahead.pipeline import Group, Reference, blend, cut_model, keyed, locked

CASES = [
    pytest.param(mlp, rows, nn.CrossEntropyLoss(), 3, id="mlp"),
    pytest.param(mlp, rows, nn.CrossEntropyLoss(), 9, id="mlp-one-layer-a-stage"),
    pytest.param(cnn, images, nn.CrossEntropyLoss(), 3, id="cnn-batchnorm"),
    pytest.param(cnn, images, nn.CrossEntropyLoss(), 10, id="cnn-cut-before-in-place-relu"),
    pytest.param(transformer, sequences, token_loss, 2, id="transformer-dropout"),
    pytest.param(transformer, sequences, token_loss, 5, id="transformer-one-layer-a-stage"),
]


def trained(groups: list[Group], batches: list[Batch], lag: int = 1, **recipe: Any) -> list[Group]:
    groups = deepcopy(groups)
    reference = Reference(make_stages(groups, batches[0], **recipe), lag=lag)
    assert len(list(reference.train(batches))) == len(batches)
    return groups


@pytest.mark.parametrize(("model", "batches", "loss", "stages"), CASES)
def test_locked_is_plain_backprop(
    model: Callable[[], nn.Module],
    batches: Callable[[int], list[Batch]],
    loss: Callable[..., Tensor],
    stages: int,
) -> None:
    groups, data = cut_model(model(), stages), batches(12)
    expected = plain_backprop(groups, data, loss, seed=7)
    actual = trained(groups, data, signal=locked, loss=loss, seed=7)
    assert_equal(state(actual), state(expected))
    assert not torch.equal(state(actual)[0], state(groups)[0])


def test_locked_is_plain_backprop_with_a_shorter_last_batch() -> None:
    groups, data = cut_model(cnn(), 3), [*images(3), *images(1, size=5), *images(2)]
    assert_equal(state(trained(groups, data)), state(plain_backprop(groups, data, nn.CrossEntropyLoss())))


def test_dropout_is_keyed_by_the_step() -> None:
    """Another seed draws other masks, or the equality above would prove nothing about dropout."""
    groups, data = cut_model(transformer(), 2), sequences(3)
    one = trained(groups, data, loss=token_loss, seed=1)
    other = trained(groups, data, loss=token_loss, seed=2)
    assert not torch.equal(state(one)[0], state(other)[0])


@pytest.mark.parametrize("predictor", ["linear", "mlp"])
def test_blend_of_1_is_backprop(predictor: str) -> None:
    groups, data = cut_model(mlp(), 4), rows(10)
    signal = blend(1.0, predictor, classes=CLASSES, optimizer=adam)
    assert_equal(state(trained(groups, data, signal=signal)), state(trained(groups, data, signal=locked)))


def test_blend_of_0_is_synthetic_alone() -> None:
    """BP(0) waits for the gradient but does not use it: DNI with a lag of one step."""
    groups, data = cut_model(mlp(), 4), rows(10)
    signal = blend(0.0, "linear", classes=CLASSES, optimizer=adam)
    assert_equal(state(trained(groups, data, signal=signal)), state(trained(groups, data, signal=cdni, lag=1)))


def test_a_locked_stage_hands_up_the_true_gradient() -> None:
    """With locked stages below, what a synthetic stage learns from is autograd's gradient at the interface."""
    groups, (data, label) = cut_model(mlp(), 4), rows(1)[0]
    copies = deepcopy(groups)
    stages = make_stages(groups, (data, label), signal=[cdni, locked, locked], seed=3)
    learnt: list[Tensor] = []

    def learn(h: Tensor, y: Tensor | None, delta: Tensor, step: int, *more: Tensor) -> None:
        learnt.append(delta)

    stages[0].signal.learn = learn  # type: ignore[method-assign]
    list(Reference(stages).train([(data, label)]))

    h = data
    interface = data
    for index, group in enumerate(copies):
        with keyed(3, index, 0):
            h = group(h)
        interface = h if index == 0 else interface
    expected = torch.autograd.grad(nn.CrossEntropyLoss()(h, label), interface)[0]
    assert_equal(learnt, [expected])
