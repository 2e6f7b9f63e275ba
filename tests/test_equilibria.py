"""What synthetic gradients do to the points where training stands still ("Understanding Synthetic Gradients", 2.2)."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import pytest
import torch
from nets import make_stages, state
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR

from stepahead.pipeline import Group, Predictor, Reference, Stage, Synthetic, cut_model, locked, synthetic

DATA = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
sgd = partial(SGD, lr=0.01)


class Constant(Predictor):
    """Guesses the same gradient for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = None
        self.value = nn.Parameter(torch.zeros(1))

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        return cls()

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        return self.value.expand_as(h)


def absolute(output: Tensor, label: Tensor | None) -> Tensor:
    return output.abs().sum()


def line(signal: Any) -> tuple[nn.Linear, Reference]:
    """f(x) = a x + b at a = 1, b = 0, trained on the sum of |f(x)|, whose minimum is at a = b = 0."""
    linear = nn.Linear(1, 1)
    linear.weight.data.fill_(1.0)
    linear.bias.data.fill_(0.0)
    groups = cut_model([linear, nn.Identity()], 2)
    stages = make_stages(groups, (DATA, DATA), signal=signal, loss=absolute, optimizer=[sgd, None])
    return linear, Reference(stages, lag=1)


def test_a_poor_predictor_adds_an_equilibrium() -> None:
    """The signs of f are -, -, +, +: the best constant is 0, and nothing moves though the true gradient is 6."""
    constant = lambda h, y: Synthetic(Constant(), sgd, loss_is_mean=False)  # noqa: E731
    linear, reference = line(constant)
    for _ in reference.train([(DATA, None)] * 200):
        pass
    assert (linear.weight.item(), linear.bias.item()) == (1.0, 0.0)
    assert torch.autograd.grad(absolute(linear(DATA), None), linear.weight)[0].item() == 6.0


@pytest.mark.parametrize("signal", [locked, synthetic("linear", optimizer=sgd, loss_is_mean=False)])
def test_a_better_signal_leaves_it(signal: Any) -> None:
    linear, reference = line(signal)
    for _ in reference.train([(DATA, None)] * 200):
        pass
    assert absolute(linear(DATA), None) < 1.0


def zero_loss_network() -> tuple[list[Group], Tensor, Tensor]:
    """A network that fits its labels exactly: they are its own outputs."""
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    for linear in (first, second):  # well conditioned, so that the predictors come there soon
        nn.init.orthogonal_(linear.weight, gain=2.0)
    model = nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), nn.Linear(6, 2))
    data = torch.randn(64, 6)
    return cut_model(model, at=["2", "4"]), data, model(data).detach()


def velocity(stages: list[Stage], data: Tensor, label: Tensor) -> float:
    """The largest gradient that any weight gets in the next step."""
    norms: list[float] = []
    for _ in Reference(stages, lag=1).train([(data, label)]):
        norms = [stage.statistics().gradient_norm or 0.0 for stage in stages]
    return max(norms)


def test_a_zero_loss_point_is_kept() -> None:
    """Predictors that start anywhere come to say zero there, and then the weights stand still."""
    groups, data, label = zero_loss_network()
    signal = synthetic("linear", optimizer=partial(Adam, lr=0.02), lr_schedule=lambda o: ExponentialLR(o, 0.9975))
    stages = make_stages(groups, (data, label), signal=signal, loss=nn.MSELoss(), optimizer=partial(SGD, lr=0.0))
    for stage in stages[:-1]:
        for parameter in stage.signal.parameters():
            parameter.data += torch.randn_like(parameter)
    before = velocity(stages, data, label)
    for _ in Reference(stages, lag=1).train([(data, label)] * 2000):
        pass
    assert velocity(stages, data, label) < 0.01 * before
    weights = state(groups)
    for stage in stages:
        assert stage.updater is not None
        stage.updater.optimizer.param_groups[0]["lr"] = 0.1
    for _ in Reference(stages, lag=1).train([(data, label)] * 50):
        pass
    moved = max(float((after - was).abs().max()) for after, was in zip(state(groups), weights, strict=True))
    assert moved < 0.01 * (before * 0.1 * 50)  # of the way that the signals would have sent them at first


def test_at_a_zero_loss_point_newborn_predictors_move_nothing() -> None:
    groups, data, label = zero_loss_network()
    signal = synthetic("linear", classes=2, optimizer=sgd)
    stages = make_stages(groups, (data, label), signal=signal, loss=nn.MSELoss(), optimizer=sgd)
    assert velocity(stages, data, label) == 0.0
