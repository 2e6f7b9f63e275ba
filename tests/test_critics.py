"""Critics: slopes of learnt losses, and what they learn from."""

from __future__ import annotations

import pytest
import torch
from nets import CLASSES, adam, mlp, rows
from torch import Tensor, nn

from stepahead.pipeline import (
    Activation,
    Critic,
    Gradient,
    LabelError,
    Recipe,
    Reference,
    SignalRecipe,
    Sobolev,
    Stage,
    Truth,
    UsageError,
    assemble,
    critic,
    cut_model,
    local_critic,
    sobolev,
    synthetic,
)

LOSS = nn.CrossEntropyLoss()
KINDS: dict[str, SignalRecipe] = {
    "critic": critic(classes=CLASSES, hidden=64, optimizer=adam),
    "sobolev": sobolev(classes=CLASSES, hidden=64, optimizer=adam),
    "sobolev, a classifier": sobolev(loss=LOSS, classes=CLASSES, optimizer=adam),
    "local critic": local_critic(loss=LOSS, classes=CLASSES, optimizer=adam),
}


def stages_of(signal: SignalRecipe | list[SignalRecipe], **options: object) -> list[Stage]:
    recipe = Recipe(loss=LOSS, signal=signal, optimizer=adam, **options)  # type: ignore[arg-type]
    return assemble(cut_model(mlp(), 3), rows(1)[0], recipe)


def told_by_the_last(stages: list[Stage]) -> Gradient:
    x, y = rows(1)[0]
    message = Activation(edge="data>0", step=0, tensors=(x,), label=y)
    for stage in stages:
        for sent in stage.step_ahead(message):
            if isinstance(sent, Activation):
                message = sent
            elif stage.is_last:
                return sent
    raise AssertionError("the last stage told nothing")


@pytest.mark.parametrize("name", KINDS)
def test_every_stage_learns_from_it(name: str) -> None:
    torch.manual_seed(0)
    batches = [(x, x[:, :CLASSES].argmax(dim=1)) for x, _ in rows(400, size=32)]
    losses = [report.loss for report in Reference(stages_of(KINDS[name])).train(batches)]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


def test_what_comes_from_the_last_stage_is_each_samples_loss() -> None:
    told = told_by_the_last(stages_of(KINDS["critic"]))
    assert told.tensors[0].shape == (len(rows(1)[0][0]),)
    assert len(told.tensors) == 1


def test_a_sobolev_critic_gets_the_gradient_too() -> None:
    stages = stages_of(KINDS["sobolev"])
    told = told_by_the_last(stages)
    assert [len(tensor) for tensor in told.tensors] == [len(rows(1)[0][0])] * 2
    assert told.tensors[0].dim() == 2
    assert isinstance(stages[1].signal, Sobolev)


def test_a_critic_comes_to_know_the_loss_and_its_slope() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, CLASSES)

    def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, y = torch.randn(256, 6, requires_grad=True), torch.randint(CLASSES, (256,))
        losses = nn.functional.cross_entropy(h @ weight, y, reduction="none")
        (slopes,) = torch.autograd.grad(losses.mean(), h)
        return h.detach(), y, losses.detach(), slopes

    for name, make in KINDS.items():
        signal = make(*batch()[:2])
        assert isinstance(signal, Critic)
        for step in range(300):
            h, y, losses, slopes = batch()
            if isinstance(signal, Sobolev):
                signal.learn(h, y, slopes, step, losses)
            else:
                signal.learn(h, y, losses, step)
        h, y, losses, slopes = batch()
        cosine = torch.cosine_similarity(signal.gradient(h, y).flatten(), slopes.flatten(), dim=0)
        assert cosine > 0.8, name
        assert (signal.values(h, y) - losses).abs().mean() < 0.3 * (losses - losses.mean()).abs().mean(), name


def test_losses_need_somebody_who_knows_them() -> None:
    stages = stages_of([KINDS["critic"], synthetic("linear", classes=CLASSES, optimizer=adam)])
    with pytest.raises(
        UsageError, match="a stage asks for the samples' losses, which Synthetic below it does not know"
    ):
        told_by_the_last(stages)


def test_a_loss_that_only_tells_its_mean_gives_that_to_all() -> None:
    def loss(h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(h, y)

    x, y = rows(1)[0]
    recipe = Recipe(loss=loss, signal=KINDS["critic"], optimizer=adam)
    stages = assemble(cut_model(mlp(), 3), (x, y), recipe)
    told = told_by_the_last(stages)
    assert told.tensors[0].shape == (len(x),)
    assert told.tensors[0].unique().numel() == 1


@pytest.mark.parametrize("name", KINDS)
def test_bad_input_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="leave the truth off, for it has no use then"):
        stages_of(KINDS[name], truth=Truth(use="true-up"))
    stages = stages_of(KINDS[name])
    x, y = rows(1)[0]
    with pytest.raises(LabelError, match=f"label {CLASSES} is outside the {CLASSES} classes"):
        list(stages[0].step_ahead(Activation(edge="data>0", step=0, tensors=(x,), label=y.clamp(min=CLASSES))))
    with pytest.raises(UsageError, match="a critic's hidden is 0; it must be at least 1"):
        critic(optimizer=adam, hidden=0)
    with pytest.raises(UsageError, match="has a head that says no loss; give it the loss too"):
        sobolev(optimizer=adam, classes=CLASSES, head=lambda h: nn.Linear(h.shape[1], CLASSES))
    with pytest.raises(UsageError, match="with a loss is a classifier; give it a head in place of hidden"):
        sobolev(optimizer=adam, classes=CLASSES, loss=LOSS, hidden=8)
    with pytest.raises(UsageError, match="with a loss is a classifier; give it the number of classes"):
        sobolev(optimizer=adam, loss=LOSS)
