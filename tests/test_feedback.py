"""Fixed maps of what comes from below: what is asked for, when it is handed up, what becomes of it."""

from __future__ import annotations

import pytest
import torch
from nets import CLASSES, adam, mlp, rows
from torch import Tensor, nn

from stepahead.pipeline import (
    Activation,
    DirectFeedback,
    FeedbackAlignment,
    Gradient,
    GradientKind,
    Kickback,
    Recipe,
    Reference,
    SignalRecipe,
    Stage,
    Truth,
    UsageError,
    assemble,
    cut_model,
    direct_feedback,
    feedback_alignment,
    kickback,
)

KINDS = {"feedback alignment": feedback_alignment, "direct feedback": direct_feedback, "kickback": kickback}


def stages_of(signal: SignalRecipe, **options: object) -> list[Stage]:
    batch = rows(1)[0]
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=signal, optimizer=adam, **options)  # type: ignore[arg-type]
    return assemble(cut_model(mlp(), 3), batch, recipe)


def forward(stages: list[Stage], batch: tuple[Tensor, Tensor]) -> list[Gradient]:
    """Run a batch through all stages, and return what the last one tells."""
    message = Activation(edge=stages[0].edge_above, step=0, tensors=(batch[0],), label=batch[1])
    told: list[Gradient] = []
    for stage in stages:
        for sent in stage.step_ahead(message):
            if isinstance(sent, Activation):
                message = sent
            else:
                told.append(sent)
    return told


def answer(stage: Stage, gradient: Gradient) -> list[Gradient]:
    return [sent for sent in stage.learn(gradient) if isinstance(sent, Gradient)]


@pytest.mark.parametrize("name", KINDS)
def test_every_stage_learns_from_it(name: str) -> None:
    torch.manual_seed(0)
    stages = stages_of(KINDS[name])
    first = [weight.clone() for weight in stages[0].group.parameters()]
    losses = [report.loss for report in Reference(stages).train(rows(4) * 30)]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert any(not torch.equal(now, before) for now, before in zip(stages[0].group.parameters(), first, strict=True))


def test_feedback_alignment_hands_on_what_each_group_steps_on() -> None:
    stages = stages_of(feedback_alignment)
    (told,) = forward(stages, rows(1)[0])
    assert told.tensors[0].shape[1] == CLASSES, "the gradient at the model's output"
    (second,) = answer(stages[1], told)
    signal = stages[1].signal
    assert isinstance(signal, FeedbackAlignment)
    assert signal.matrix is not None
    torch.testing.assert_close(second.tensors[0], told.tensors[0] @ signal.matrix.T)
    before = signal.matrix.clone()
    assert answer(stages[0], second) == []
    assert torch.equal(signal.matrix, before)


@pytest.mark.parametrize("signal", [direct_feedback, kickback])
def test_the_error_is_handed_up_before_the_backward_pass(signal: SignalRecipe) -> None:
    stages = stages_of(signal)
    (told,) = forward(stages, rows(1)[0])
    weights = [weight.clone() for weight in stages[1].group.parameters()]
    handed = next(iter(stages[1].learn(told)))
    assert isinstance(handed, Gradient)
    assert torch.equal(handed.tensors[0], told.tensors[0])
    assert handed.edge == "0>1"
    assert all(torch.equal(now, before) for now, before in zip(stages[1].group.parameters(), weights, strict=True))


def test_kickback_of_one_output_is_that_error_for_every_unit() -> None:
    h, error = torch.randn(3, 7), torch.randn(3, 1)
    torch.testing.assert_close(Kickback().gradient(h, None, error), error.expand(3, 7))


def test_kickback_deals_units_out_over_the_outputs() -> None:
    error = torch.tensor([[1.0, 2.0, 3.0]])
    given = Kickback().gradient(torch.randn(1, 7), None, error)
    assert given.tolist() == [[1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0]]
    images = Kickback().gradient(torch.randn(1, 4, 2, 2), None, error)
    assert images[0, :, 0, 0].tolist() == images[0, :, 1, 1].tolist() == [1.0, 2.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("came", "h"),
    [((4, 3, 5, 5), (4, 6, 10, 10)), ((4, 7, 3), (4, 7, 9)), ((4, 10), (4, 6, 3, 3)), ((4, 7, 3), (4, 9))],
)
def test_what_comes_may_have_another_shape(came: tuple[int, ...], h: tuple[int, ...]) -> None:
    signal = DirectFeedback()
    given = signal.gradient(torch.randn(h), None, torch.randn(came))
    assert given.shape == h
    assert given.abs().sum(dim=tuple(range(1, given.dim()))).min() > 0


@pytest.mark.parametrize("name", KINDS)
def test_they_have_no_use_for_the_truth(name: str) -> None:
    with pytest.raises(UsageError, match="leave the truth off, for it has no use then"):
        stages_of(KINDS[name], truth=Truth(use="learn"))


@pytest.mark.parametrize("name", KINDS)
def test_a_gradient_that_is_not_finite_is_handed_up_once(name: str) -> None:
    stages = stages_of(KINDS[name], on_non_finite="skip")
    (told,) = forward(stages, rows(1)[0])
    wrong = Gradient(edge="1>2", step=0, tensors=(torch.full_like(told.tensors[0], torch.nan),), kind=told.kind)
    (second,) = answer(stages[1], wrong)
    assert second.tensors[0].isnan().all()
    assert answer(stages[0], second) == []
    assert [stage.skipped for stage in stages] == [1, 1, 0]
    assert second.kind is GradientKind.TARGET
