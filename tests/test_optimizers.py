"""Muon for matrices, another optimizer for the rest."""

from __future__ import annotations

import pickle
from copy import deepcopy
from functools import partial
from typing import cast

import pytest
import torch
from nets import CLASSES, make_stages, rows
from torch import nn
from torch.optim import LBFGS, Adam, Muon
from torch.optim.lr_scheduler import LambdaLR

from stepahead.launch.job import load_job
from stepahead.pipeline import OptimizerRecipe, Reference, UsageError, cut_model, muon

rest = partial(Adam, lr=1e-2)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES))


def test_each_weight_has_the_optimizer_that_it_should() -> None:
    ours = net()
    by_hand = deepcopy(ours)
    batches = rows(5)
    stages = make_stages(cut_model(ours, 1), batches[0], optimizer=muon(0.1, rest=rest))
    list(Reference(stages).train(batches))
    matrices = [weight for weight in by_hand.parameters() if weight.dim() == 2]
    others = [weight for weight in by_hand.parameters() if weight.dim() == 1]
    optimizers = [Muon(matrices, 0.1, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw"), rest(others)]
    for data, label in batches:
        nn.functional.cross_entropy(by_hand(data), label).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for trained, expected in zip(stages[0].group.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(trained, expected)


def test_what_is_muons_can_be_chosen() -> None:
    model = net()
    last = model[2].weight
    made = muon(0.1, rest=rest, of=lambda weight: weight.dim() == 2 and weight is not last)(model.parameters())
    rates = {id(weight): group["lr"] for group in made.param_groups for weight in group["params"]}
    assert [rates[id(weight)] for weight in model.parameters()] == [0.1, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2]


def test_a_stage_of_one_kind_has_one_optimizer() -> None:
    recipe = muon(0.1, rest=rest)
    assert isinstance(recipe(nn.Linear(3, 3, bias=False).parameters()), Muon)
    assert isinstance(recipe(nn.LayerNorm(3).parameters()), Adam)


def test_a_schedule_changes_the_rate_of_all() -> None:
    optimizer = muon(0.1, rest=rest)(net().parameters())
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 0.05]


def test_what_needs_a_closure_is_refused() -> None:
    with pytest.raises(UsageError, match="LBFGS runs the model many times a step"):
        muon(0.1, rest=LBFGS)(net().parameters())
    with pytest.raises(UsageError, match="takes no closure"):
        muon(0.1, rest=rest)(net().parameters()).step(lambda: 0.0)


def test_its_state_can_be_saved_and_it_can_be_copied() -> None:
    model = net()
    optimizer = muon(0.1, rest=rest)(model.parameters())
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    saved = deepcopy(optimizer.state_dict())
    assert [len(part["state"]) for part in saved["parts"]] == [4, 2]
    again = muon(0.1, rest=rest)(model.parameters())
    again.load_state_dict(saved)
    for group in again.param_groups:
        group["lr"] = 0.0  # of the parts too
    before = deepcopy(list(model.parameters()))
    again.step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    pickle.loads(pickle.dumps(optimizer)).step()
    pickle.loads(pickle.dumps(muon(0.1, rest=rest)))(net().parameters()).step()


@pytest.mark.parametrize("window", [16, 32, 96])
def test_the_blocks_of_the_job_are_muons_whatever_their_shapes(window: int) -> None:
    job = load_job("chars", {"width": 32, "heads": 2, "blocks": 2, "window": window, "batch": 4, "steps": 10})
    (group,) = cut_model(job.model, 1)
    optimizer = cast(OptimizerRecipe, job.optimizer)(group.parameters())
    others, matrices = ([weight.shape for weight in part["params"]] for part in optimizer.param_groups)
    assert len(matrices) == 2 * 4
    assert sum(len(shape) == 2 for shape in others) == 3  # two tables and the last layer


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_the_filters_of_a_convolution_are_the_rows_of_a_matrix(form: torch.memory_format) -> None:
    convolution = nn.Conv2d(3, 6, 5, bias=False)
    weight = convolution.weight
    weight.data = weight.data.to(memory_format=form)
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    ours = muon(0.1, rest=rest)(convolution.parameters())
    by_hand = Muon([matrix], 0.1, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(6, 3, 5, 5)
        weight.grad, matrix.grad = gradient, gradient.flatten(1)
        ours.step()
        by_hand.step()
        assert torch.equal(weight.flatten(1), matrix)
        assert weight.shape == gradient.shape
        assert weight.grad is gradient
    assert convolution(torch.randn(1, 3, 8, 8)).shape == (1, 6, 4, 4)
