"""Batches that are left out, and stages that run on guesses of their inputs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from nets import CLASSES, INPUTS, SIGNALS, adam, cdni, mlp, rows
from torch import nn
from torch.optim import SGD, Adam

from stepahead.pipeline import (
    Activation,
    Gradient,
    GradientKind,
    MessageError,
    Recipe,
    Reference,
    Stage,
    Truth,
    UsageError,
    assemble,
    cut_model,
    locked,
    synthetic_inputs,
)


def stages_of(**options: Any) -> list[Stage]:
    settings: dict[str, Any] = {"signal": cdni, "optimizer": adam, **options}
    recipe = Recipe(loss=nn.CrossEntropyLoss(), **settings)
    return assemble(cut_model(mlp(), 3), rows(1)[0], recipe)


def weights_of(stage: Stage) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in stage.group.parameters()]


def steps_taken(chance: float, **options: Any) -> list[list[bool]]:
    """Return for each stage in which steps its weights moved; plain SGD never moves them without a gradient."""
    stages = stages_of(chance=chance, optimizer=partial(SGD, lr=0.1), **options)
    moved: list[list[bool]] = [[] for _ in stages]
    before = [weights_of(stage) for stage in stages]
    for _ in Reference(stages, lag=1).train(rows(60)):
        for index, stage in enumerate(stages):
            now = weights_of(stage)
            moved[index].append(any(not torch.equal(a, b) for a, b in zip(now, before[index], strict=True)))
            before[index] = now
    return moved


def test_each_stage_leaves_batches_out_by_itself() -> None:
    moved = steps_taken(0.5)
    assert all(15 <= sum(each[5:]) <= 45 for each in moved)
    assert moved[0] != moved[1] != moved[2]


def test_backprop_reaches_a_stage_only_if_all_below_have_stepped() -> None:
    moved = steps_taken(0.5, signal=locked)
    assert [sum(each) for each in moved] == sorted(sum(each) for each in moved)
    assert all(below or not above for above, below in zip(moved[0], moved[1], strict=True))
    assert all(below or not above for above, below in zip(moved[1], moved[2], strict=True))
    assert sum(moved[0]) < sum(moved[2]) / 2


def test_a_batch_that_is_left_out_says_so_to_the_stage_above() -> None:
    stages = stages_of(chance=1e-9)
    x, y = rows(1)[0]
    sent = list(stages[1].step_ahead(Activation(edge="0>1", step=0, tensors=(torch.randn(len(x), 16),), label=y)))
    assert isinstance(sent[0], Activation)
    assert sent[0].tensors[0].numel()
    assert isinstance(sent[1], Gradient)
    assert sent[1].kind is GradientKind.NONE


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("options", [{"chance": 0.5}, {"inputs": INPUTS}, {"inputs": INPUTS, "chance": 0.5}])
def test_all_signals_go_with_it(name: str, options: dict[str, Any]) -> None:
    """Nothing is left over, whoever leaves which batch out."""
    stages = stages_of(signal=SIGNALS[name], **options)
    for _ in Reference(stages).train(rows(20)):
        pass
    assert [len(stage.kept) for stage in stages] == [0, 0, 0]
    assert [stage.step for stage in stages] == [20, 20, 20]
    assert all(stage.inputs is None or stage.inputs.unheard == 0 for stage in stages)


def test_training_on_guesses_learns() -> None:
    torch.manual_seed(0)
    stages = stages_of(inputs=INPUTS)
    data = rows(4)
    reference = Reference(stages)
    before = reference.evaluate(data)["loss"]
    for _ in reference.train(data * 60):
        pass
    assert reference.evaluate(data)["loss"] < 0.7 * before
    quality = stages[1].statistics().inputs
    assert quality is not None
    assert quality.cosine > 0.8
    assert stages[0].statistics().inputs is None


def test_a_stage_on_guesses_needs_nothing_from_above_to_step() -> None:
    stages = stages_of(inputs=INPUTS)
    before = weights_of(stages[2])
    x, y = rows(1)[0]
    for _ in stages[2].step_ahead(Activation(edge="1>2", step=0, tensors=(x,), label=y)):
        pass
    assert any(not torch.equal(a, b) for a, b in zip(weights_of(stages[2]), before, strict=True))
    with pytest.raises(MessageError, match="an activation of step 1 came from above, where none was expected"):
        stages[2].hear(Activation(edge="1>2", step=1, tensors=(x,)))


def test_guesses_start_at_zero_and_learn_what_they_were_to_be() -> None:
    torch.manual_seed(0)
    x, h = torch.randn(64, 12), torch.randn(64, 4, 3)
    made = synthetic_inputs(optimizer=partial(Adam, lr=1e-2), hidden=64)(x, h)
    assert not made.guess(x).any()
    for step in range(302):
        made.expect(x, step)
    for step in range(300):
        made.learn(h, step)
    made.learn(torch.empty(0), 300)  # was left out
    assert (made.guess(x) - h).square().mean() < 0.2 * h.square().mean()
    with pytest.raises(MessageError, match=r"a synthetic input is \[64, 4, 3\], and \[64, 4\] came from above"):
        made.learn(h[:, :, 0], 301)


def test_bad_input_is_named() -> None:
    with pytest.raises(UsageError, match="a chance of 0; it must be above 0 and at most 1"):
        stages_of(chance=0)
    with pytest.raises(UsageError, match="stages that leave batches out have no truth to pass on"):
        stages_of(chance=0.5, truth=Truth(use="true-up"))
    with pytest.raises(UsageError, match="stages with synthetic inputs have no truth to pass on"):
        stages_of(inputs=INPUTS, truth=Truth(use="learn"))
    with pytest.raises(UsageError, match=r"a synthetic input of torch\.int64 needs a network of your own"):
        INPUTS(torch.arange(CLASSES), torch.randn(CLASSES, 3))
    with pytest.raises(UsageError, match="has depth -1 and hidden None; at least 0 and 1 are needed"):
        synthetic_inputs(optimizer=adam, depth=-1)
