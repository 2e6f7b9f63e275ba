"""What layers cost, and cuts by it."""

from __future__ import annotations

import torch
from nets import CLASSES, assert_equal, cnn, images, state
from torch import Tensor, nn

from stepahead.pipeline import balance_model, layers_of, make_predictor, measure_costs


def test_a_dear_layer_costs_more() -> None:
    layers = layers_of([nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2048), nn.Linear(2048, 64)])
    cheap, activation, dear, _ = measure_costs(
        layers, torch.randn(128, 64), predictor=lambda h: make_predictor("linear", h)
    )
    assert dear.total > 2 * activation.total
    assert dear.predictor > cheap.predictor
    assert [cost.output_bytes for cost in (cheap, dear)] == [128 * 64 * 4, 128 * 2048 * 4]
    assert cheap.name == "0"


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = cnn()
    before, mode = state([model]), model.training
    data, _ = images(1)[0]
    stream = torch.get_rng_state()
    costs = measure_costs(layers_of(model), data, repeats=2)
    assert len(costs) == len(model)
    assert all(cost.forward > 0 for cost in costs)
    assert all(cost.predictor == 0 for cost in costs)
    assert_equal(state([model]), before)
    assert model.training == mode
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(parameter.grad is None for parameter in model.parameters())


class Busy(nn.Module):
    """Takes many times as long as a small layer, both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(256))

    def forward(self, h: Tensor) -> Tensor:
        for _ in range(20):
            h = h @ self.weight
        return h


def test_a_model_is_balanced_by_what_its_layers_take() -> None:
    model = [nn.Linear(256, 256), Busy(), *[nn.Linear(256, 256) for _ in range(6)]]
    groups = balance_model(model, 2, torch.randn(64, 256))
    assert [len(group.names) for group in groups] in ([2, 6], [1, 7])


def test_an_integer_input_and_a_label() -> None:
    layers = layers_of([nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES)])
    data = torch.randint(CLASSES, (4, 6))
    costs = measure_costs(
        layers, data, predictor=lambda h: make_predictor("token", h, classes=CLASSES), label=data, repeats=1
    )
    assert all(cost.backward > 0 and cost.predictor > 0 for cost in costs)
