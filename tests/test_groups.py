"""A user's model as named layers, and the groups made of them."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import assert_equal, mlp, state
from torch import Tensor, nn

from stepahead.pipeline import CutError, build_group, build_groups, cut_model, layers_of


def test_a_sequential_keeps_its_names_and_its_weights() -> None:
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(3, 4), nn.ReLU()), head=nn.Linear(4, 2)))
    groups = cut_model(model, 2)
    assert [group.names for group in groups] == [("body.0", "body.1"), ("head",)]
    assert [group.title for group in groups] == ["body.0..body.1", "head"]
    assert_equal(state(groups), state([model]))


def test_a_sequential_with_a_forward_of_its_own_stays_one_layer() -> None:
    class Residual(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            h = input
            for layer in self:
                h = layer(h)
            return input + h

    model = nn.Sequential(nn.Linear(4, 4), Residual(nn.Linear(4, 4), nn.ReLU()))
    assert [layer.name for layer in layers_of(model)] == ["0", "1"]
    data = torch.randn(2, 4)
    first, second = cut_model(model, 2)
    assert torch.equal(second(first(data)), model(data))


@given(st.integers(1, 12), st.data())
def test_groups_in_a_row_are_the_model(depth: int, data: st.DataObject) -> None:
    model = mlp(depth=depth)
    groups = cut_model(model, data.draw(st.integers(1, 2 * depth + 1)))
    h = batch = torch.randn(3, 12)
    for group in groups:
        h = group(h)
    assert torch.equal(h, model(batch))


def test_a_factory_builds_the_same_layer_whoever_calls_it() -> None:
    factories = [partial(nn.Linear, 3, 3) for _ in range(4)]
    whole = cut_model(factories, 2, seed=5)
    torch.manual_seed(99)
    others: list[Any] = [nn.Linear, nn.Linear]  # they could not be built without arguments: nobody calls them
    alone = build_group(layers_of([*others, *factories[2:]]), (2, 2), 1, seed=5)
    assert_equal(state([alone]), state(whole[1:]))
    weights = [tensor for tensor in state(whole) if tensor.dim() == 2]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])
    assert not torch.equal(state(cut_model(factories, 2, seed=6))[0], state(whole)[0])


def test_a_list_of_layers_and_factories() -> None:
    groups = cut_model([nn.Linear(3, 3), nn.ReLU, nn.Sequential(nn.Linear(3, 3), nn.Tanh())], at=["2.0"])
    assert [group.names for group in groups] == [("0", "1"), ("2.0", "2.1")]
    assert isinstance(groups[0].layers[1], nn.ReLU)


class Net(nn.Module):
    pass


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Net(), "a Net is not a chain of layers; pass an nn.Sequential, a list of layers"),
        (nn.Sequential(), "the model has no layers"),
        ([], "the model has no layers"),
        ([nn.Linear(2, 2), 3], "layer '1' is a int, not a module or a function"),
        ([nn.Linear(2, 2), nn.Linear], "the factory of layer '1' cannot be called: .*missing 2 required"),
        ([nn.LazyLinear(2)], "'0.weight' has no shape yet; run a batch through the lazy model once"),
        ([nn.Linear(2, 2), lambda: 3], "the factory of layer '1' made a int, not a module"),
        (5, "a int is not a chain of layers"),
    ],
)
def test_models_that_are_no_chain(model: Any, text: str) -> None:
    with pytest.raises(CutError, match=text):
        cut_model(model, 1)


def test_a_cut_must_be_said_in_one_way() -> None:
    with pytest.raises(CutError, match="say either into how many stages"):
        cut_model(mlp())
    with pytest.raises(CutError, match="say either into how many stages"):
        cut_model(mlp(), 2, at=[1])
    with pytest.raises(CutError, match=r"places 3 layers, the model has 9"):
        build_groups(layers_of(mlp()), (1, 2))
    with pytest.raises(CutError, match="cannot cut into 0 stages"):
        cut_model(mlp(), 0)


@pytest.mark.parametrize(
    ("layer", "returned"),
    [(nn.LSTM(12, 12), "tuple"), (nn.Identity(), None)],
)
def test_a_layer_that_returns_no_tensor(layer: nn.Module, returned: str | None) -> None:
    class Nothing(nn.Module):
        def forward(self, h: Tensor) -> None:
            return None

    model = nn.Sequential(nn.Linear(12, 12), layer if returned else Nothing(), nn.Linear(12, 2))
    (group,) = cut_model(model, 1)
    with pytest.raises(CutError, match=rf"layer '1' \(\w+\) returned a {returned or 'NoneType'}; a layer of a chain"):
        group(torch.randn(2, 12))


def test_tied_weights_across_a_cut() -> None:
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(OrderedDict(embed=embedding, middle=nn.Linear(4, 4), head=head))
    with pytest.raises(CutError, match=r"'embed.weight' in stage 0 and 'head.weight' in stage 1 are one tied weight"):
        cut_model(model, 2)
    assert len(cut_model(model, 1)) == 1  # inside one stage a tie is fine


def test_weights_tied_through_a_view_or_a_shared_layer() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = nn.Parameter(first.weight.data.t())
    with pytest.raises(CutError, match="one tied weight"):
        cut_model([first, second], 2)
    with pytest.raises(CutError, match="one tied weight"):
        cut_model([first, nn.ReLU(), first], 3)
    relu = nn.ReLU()
    assert len(cut_model([first, relu, nn.Linear(4, 4), relu], 4)) == 4  # nothing is shared but code


def test_an_in_place_layer_after_a_cut_gets_its_own_copy() -> None:
    group = cut_model([nn.Linear(3, 3), nn.Sequential(nn.ReLU(inplace=True))], 2)[1]
    data = torch.tensor([[-1.0, 2.0, -3.0]])
    assert torch.equal(group(data), torch.tensor([[0.0, 2.0, 0.0]]))
    assert torch.equal(data, torch.tensor([[-1.0, 2.0, -3.0]]))
