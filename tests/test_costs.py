"""What layers cost, and cuts by it."""

from __future__ import annotations

from itertools import count
from math import isinf
from typing import Any

import pytest
import torch
from nets import CLASSES, adam, assert_equal, cnn, images, mlp, rows, state
from torch import Tensor, nn

from stepahead.pipeline import (
    SignalRecipe,
    balance_model,
    critic,
    layers_of,
    local_critic,
    measure_costs,
    probe,
    sobolev,
    synthetic,
)
from stepahead.pipeline import costs as costs_module


def test_a_dear_layer_costs_more() -> None:
    layers = layers_of([nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2048), nn.Linear(2048, 64)])
    cheap, activation, dear, _ = measure_costs(
        layers, (torch.randn(128, 64), None), signal=synthetic("linear", optimizer=adam)
    )
    assert dear.total > 2 * activation.total
    assert dear.signal > cheap.signal > 0
    assert [cost.output_bytes for cost in (cheap, dear)] == [128 * 64 * 4, 128 * 2048 * 4]
    assert cheap.name == "0"


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = cnn()
    before, mode = state([model]), model.training
    data = images(1)[0]
    stream = torch.get_rng_state()
    costs = measure_costs(layers_of(model), data, repeats=2)
    assert len(costs) == len(model)
    assert all(cost.forward > 0 for cost in costs)
    assert all(cost.signal == 0 for cost in costs)
    assert_equal(state([model]), before)
    assert model.training == mode
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(parameter.grad is None for parameter in model.parameters())


class Busy(nn.Module):
    """Takes many times as long as any other layer, by a clock that counts its passes."""

    passes = 0

    def forward(self, h: Tensor) -> Tensor:
        Busy.passes += 1
        return h


def test_a_signal_that_cannot_be_has_no_end_of_costs() -> None:
    """A guess for images has no use behind the layer that flattens them."""
    model = [nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, CLASSES)]
    images = torch.randn(4, 1, 8, 8)
    costs = measure_costs(layers_of(model), (images, None), signal=synthetic("conv", optimizer=adam), repeats=1)
    assert [isinf(cost.signal) for cost in costs] == [False, True, True]
    groups = balance_model(model, 2, (images, None), signal=synthetic("conv", optimizer=adam))
    assert [len(group.names) for group in groups] == [1, 2]


def head_for_images(h: Tensor) -> nn.Module:
    return nn.Sequential(nn.Conv2d(h.shape[1], CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    "signal",
    [
        critic(classes=CLASSES, optimizer=adam),
        sobolev(classes=CLASSES, optimizer=adam),
        sobolev(loss=nn.CrossEntropyLoss(), classes=CLASSES, optimizer=adam),
        local_critic(loss=nn.CrossEntropyLoss(), classes=CLASSES, optimizer=adam),
        probe(loss=nn.CrossEntropyLoss(), classes=CLASSES, optimizer=adam),
    ],
)
def test_signals_that_learn_from_something_else_are_measured_too(signal: SignalRecipe) -> None:
    costs = measure_costs(layers_of(mlp(depth=1)), rows(1)[0], signal=signal, repeats=1)
    assert all(0 < cost.signal < 10 for cost in costs[:-1])


def test_a_head_of_ones_own_that_does_not_fit_is_no_end_of_costs() -> None:
    signal = probe(loss=nn.CrossEntropyLoss(), classes=CLASSES, head=head_for_images, optimizer=adam)
    costs = measure_costs(layers_of(cnn()), images(1)[0], signal=signal, repeats=1)
    assert costs[0].signal < 10
    assert isinf(costs[-1].signal)


def test_a_model_is_balanced_by_what_its_layers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(costs_module, "clock", lambda _: lambda: next(ticks) + 1000 * Busy.passes)
    model = [nn.Linear(8, 8), Busy(), *[nn.Linear(8, 8) for _ in range(6)]]
    groups = balance_model(model, 2, (torch.randn(4, 8), None))
    assert [len(group.names) for group in groups] == [2, 6]


def test_an_integer_input_and_a_label() -> None:
    layers = layers_of([nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES)])
    data = torch.randint(CLASSES, (4, 6))
    signal = synthetic("token", classes=CLASSES, optimizer=adam)
    costs = measure_costs(layers, (data, data), signal=signal, repeats=1)
    assert all(cost.backward > 0 and cost.optimizer > 0 and cost.signal > 0 for cost in costs)


class SlowBack(torch.autograd.Function):
    """Passes on; thinks long on the way back."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        for _ in range(50):
            gradients[0].mm(gradients[0])
        return gradients[0]


class Backward(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = SlowBack.apply(h)  # type: ignore[no-untyped-call]
        return out


def test_the_backward_pass_counts() -> None:
    layers = layers_of([nn.Linear(256, 256), Backward(), nn.Linear(256, 256)])
    _, slow, linear = measure_costs(layers, (torch.randn(256, 256), None))
    assert slow.backward > 5 * linear.backward
    assert slow.backward > 5 * slow.forward


def test_a_signal_that_learns_seldom_costs_less() -> None:
    layers = layers_of([nn.Linear(256, 256)])
    often, seldom = (
        measure_costs(layers, (torch.randn(256, 256), None), signal=synthetic("linear", optimizer=adam, every=every))
        for every in (1, 8)
    )
    assert seldom[0].signal < 0.8 * often[0].signal
