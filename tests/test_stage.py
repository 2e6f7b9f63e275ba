"""What one step of one stage does, and what it leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from nets import CLASSES, activation, adam, assert_equal, cdni, cnn, images, make_stages, mlp, rows, sent, state
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from stepahead.pipeline import (
    Asking,
    Gradient,
    GradientKind,
    Reference,
    Stage,
    Truth,
    UsageError,
    cut_model,
    locked,
    probe,
    silent,
    synthetic,
)
from stepahead.pipeline.signals import Signal

seldom = synthetic("linear", classes=CLASSES, every=4, optimizer=adam)


def first_stage(**recipe: Any) -> Stage:
    return make_stages(cut_model(mlp(), 2), rows(1)[0], **{"signal": cdni} | recipe)[0]


def gradient_for(stage: Stage, step: int, size: int = 8) -> Gradient:
    return Gradient(edge=stage.edge_below, step=step, tensors=(torch.randn(size, 16) / size,), kind=GradientKind.TARGET)


def run(stages: list[Stage], steps: int = 10) -> None:
    for _ in Reference(stages).train(rows(steps)):
        pass


@pytest.mark.parametrize("optimizer", [adam, partial(SGD, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize("predictor", ["linear", "low-rank", "mlp"])
def test_a_newborn_predictor_leaves_the_weights_unmoved(predictor: str, optimizer: Any) -> None:
    stage = first_stage(signal=synthetic(predictor, classes=CLASSES, optimizer=adam), optimizer=optimizer)
    before = state([stage.group])
    list(stage.step_ahead(activation()))
    assert_equal(state([stage.group]), before)


def test_the_weights_move_once_the_predictor_has_learnt() -> None:
    stage = first_stage()
    before = state([stage.group])
    list(stage.step_ahead(activation()))
    list(stage.learn(gradient_for(stage, 0)))
    list(stage.step_ahead(activation(step=1)))
    assert all(not torch.equal(a, b) for a, b in zip(before, state([stage.group]), strict=True))


def test_learning_never_reaches_the_group() -> None:
    stage = first_stage()
    list(stage.step_ahead(activation()))
    before = state([stage.group])
    predictor = state([stage.signal])
    list(stage.learn(gradient_for(stage, 0)))
    assert_equal(state([stage.group]), before)
    assert all(parameter.grad is None for parameter in stage.group.parameters())
    assert not torch.equal(state([stage.signal])[0], predictor[0])


def test_the_activation_is_sent_before_the_backward_pass() -> None:
    events: list[str] = []

    @contextmanager
    def span(name: str) -> Generator[None]:
        events.append(name)
        yield

    stages = make_stages(cut_model(mlp(), 3), rows(1)[0], signal=cdni)
    middle = stages[1]
    middle.span = middle.passes.span = span
    (first,) = sent(list(stages[0].step_ahead(activation())))[0]
    for message in middle.step_ahead(first):
        events.append(f"send {type(message).__name__}")
    assert events == ["forward", "send Activation", "predict", "backward", "send Gradient", "optimizer"]


@pytest.mark.parametrize("signal", [cdni, locked])
def test_the_backward_pass_is_in_one_piece(signal: Any) -> None:
    """Whoever lets it last as long as on another device counts on that."""
    parts: list[list[str]] = [[], [], []]

    def noting(index: int, part: str) -> Any:
        parts[index].append(part)
        return nullcontext()

    stages = make_stages(cut_model(mlp(), 3), rows(1)[0], signal=signal)
    for stage in stages:
        stage.span = stage.passes.span = partial(noting, stage.index)
    run(stages, 1)
    assert all(each.count("backward") == 1 for each in parts)
    assert parts[2] == ["forward", "forward", "backward", "optimizer"]


def test_a_locked_stage_steps_when_its_gradient_comes() -> None:
    stage = first_stage(signal=locked)
    before = state([stage.group])
    assert sent(list(stage.step_ahead(activation())))[1] == []
    assert_equal(state([stage.group]), before)
    list(stage.learn(gradient_for(stage, 0)))
    assert not torch.equal(state([stage.group])[0], before[0])


@pytest.mark.parametrize(
    ("signal", "kind"), [(cdni, GradientKind.TARGET), (locked, GradientKind.TRUTH), (silent, GradientKind.TARGET)]
)
def test_what_is_sent_up_says_what_it_is_worth(signal: Any, kind: GradientKind) -> None:
    stages = make_stages(cut_model(mlp(), 3), rows(1)[0], signal=[cdni, signal])
    seen: list[GradientKind] = []
    learn = stages[0].learn

    def watch(gradient: Gradient) -> Any:
        seen.append(gradient.kind)
        return learn(gradient)

    stages[0].learn = watch  # type: ignore[method-assign]
    run(stages, 1)
    assert seen == [kind]


def test_a_gradient_that_nobody_will_learn_from_is_not_sent() -> None:
    stage = make_stages(cut_model(mlp(), 2), rows(1)[0], signal=seldom)[1]
    for step in range(5):
        batch = activation(step, data=torch.randn(8, 16), edge=stage.edge_above)
        (gradient,) = sent(list(stage.step_ahead(batch)))[1]
        if step % 4:
            assert gradient.kind is GradientKind.NONE
            assert gradient.tensors[0].numel() == 0
        else:
            assert gradient.tensors[0].shape == (8, 16)


@pytest.mark.parametrize("signal", [silent, probe(loss=nn.CrossEntropyLoss(), classes=CLASSES, optimizer=adam)])
def test_who_learns_from_nothing_is_told_nothing(signal: Any) -> None:
    stage = make_stages(cut_model(mlp(), 2), rows(1)[0], signal=signal)[1]
    (gradient,) = sent(list(stage.step_ahead(activation(data=torch.randn(8, 16), edge=stage.edge_above))))[1]
    assert gradient.kind is GradientKind.NONE


def test_a_recipe_that_asks_too_seldom_is_refused() -> None:
    for every in (0, 3):
        with pytest.raises(UsageError, match="stage 0 learns more often than its recipe's `every` says"):
            first_stage(signal=Asking(cdni, every=every))
    with pytest.raises(UsageError, match="every is -1"):
        Asking(cdni, every=-1)


@pytest.mark.parametrize("truth", [Truth(), Truth(use="true-up", every=2), Truth(use="true-up", every=3, keep="graph")])
def test_what_is_not_sent_makes_no_difference(truth: Truth) -> None:
    def hidden(h: Tensor, y: Tensor | None) -> Signal:  # a recipe that does not say how often its signals learn
        return seldom(h, y)

    model, batches, weights = mlp(), rows(10), list[list[Tensor]]()
    for signal in (seldom, hidden):
        stages = make_stages(cut_model(deepcopy(model), 3), batches[0], signal=signal, truth=truth)
        list(Reference(stages).train(batches))
        weights.append(state([*(stage.group for stage in stages), *(stage.signal for stage in stages)]))
    assert_equal(*weights)


def test_no_gradient_is_made_of_an_input_that_nobody_asks_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of zeros over the data, at each step."""
    made: list[torch.Size] = []
    zeros_like = torch.zeros_like

    def noting(tensor: Tensor, **options: Any) -> Tensor:
        made.append(tensor.shape)
        return zeros_like(tensor, **options)

    monkeypatch.setattr(torch, "zeros_like", noting)
    batch = activation()
    list(first_stage().step_ahead(batch))
    assert batch.tensors[0].shape not in made


def test_a_silent_stage_keeps_its_weights() -> None:
    stages = make_stages(cut_model(mlp(), 3), rows(1)[0], signal=silent)
    before = [state([stage.group]) for stage in stages]
    run(stages)
    assert_equal(state([stages[0].group]), before[0])
    assert_equal(state([stages[1].group]), before[1])
    assert not torch.equal(state([stages[2].group])[0], before[2][0])


def test_a_probe_needs_nobody() -> None:
    stage = first_stage(signal=probe(loss=nn.CrossEntropyLoss(), classes=CLASSES, optimizer=adam))
    data = activation()
    losses: list[float] = []
    for step in range(60):
        list(stage.step_ahead(activation(step, data.tensors[0], data.label)))
        losses.append(stage.statistics().loss or 0.0)
    assert losses[-1] < losses[0] / 4


def test_the_group_may_have_a_loss_of_its_own() -> None:
    class WithTerm(Signal):
        def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
            return torch.zeros_like(h)

        def term(self, h: Tensor, y: Tensor | None) -> Tensor:
            return h.square().sum()

    stage = first_stage(signal=lambda h, y: WithTerm(), optimizer=partial(SGD, lr=0.01))
    data = activation().tensors[0]
    before = stage.group(data).square().sum()
    list(stage.step_ahead(activation(data=data)))
    assert stage.group(data).square().sum() < before


def test_separate_rates_clipping_and_schedules() -> None:
    stage = first_stage(
        signal=synthetic("linear", optimizer=partial(SGD, lr=0.5), lr_schedule=lambda o: StepLR(o, 1, 0.5), every=2),
        optimizer=partial(SGD, lr=1.0),
        lr_schedule=lambda optimizer: StepLR(optimizer, 2, 0.1),
        clip=1e-3,
    )
    signal: Any = stage.signal
    for step in range(4):
        before = state([stage.group])
        list(stage.step_ahead(activation(step)))
        rate = 1.0 if step < 2 else 0.1
        moved = torch.cat([(a - b).flatten() for a, b in zip(state([stage.group]), before, strict=True)]).norm()
        assert moved <= rate * 1e-3 * 1.001
        list(stage.learn(gradient_for(stage, step)))
    assert stage.updater is not None
    assert stage.updater.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert signal.updater.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.5**4)
    assert stage.statistics().gradient_norm is not None


def test_a_frozen_group_still_passes_gradients_up() -> None:
    stages = make_stages(cut_model(mlp(), 3), rows(1)[0], optimizer=[adam, None, partial(AdamW, lr=1e-2)])
    before = [state([stage.group]) for stage in stages]
    run(stages)
    moved = [not torch.equal(state([stage.group])[0], old[0]) for stage, old in zip(stages, before, strict=True)]
    assert moved == [True, False, True]


def test_a_frozen_first_stage_feeds_the_others() -> None:
    stages = make_stages(cut_model(mlp(), 2), rows(1)[0], optimizer=[None, adam])
    before = state([stages[0].group])
    run(stages)
    assert_equal(state([stages[0].group]), before)


def test_evaluation_leaves_no_trace() -> None:
    stages = make_stages(cut_model(cnn(), 2), images(1)[0], signal=synthetic("conv", optimizer=adam))
    stages[0].group.layers[1].eval()  # a layer that its user holds in eval mode stays there
    before = state([stage.group for stage in stages])
    data = images(2, size=20)
    stream = torch.get_rng_state()
    Reference(stages).evaluate(data)
    assert torch.equal(torch.get_rng_state(), stream)
    assert_equal(state([stage.group for stage in stages]), before)
    assert stages[0].group.training
    assert not stages[0].group.layers[1].training
    assert stages[0].group.layers[0].training


@pytest.mark.parametrize("signal", [cdni, locked], ids=["synthetic", "locked"])
def test_memory_stays_flat(signal: Any) -> None:
    """No graph outlives its step: after 1,000 more, not one tensor more is alive."""
    stages = make_stages(cut_model(mlp(), 3), rows(1)[0], signal=signal)
    reference = Reference(stages)
    batch = rows(1)[0]

    def tensors_after(steps: int) -> int:
        counts = [_live_tensors() for _ in reference.train([batch] * steps)]
        return counts[-1]

    few = tensors_after(5)
    for _ in reference.train([batch] * 1000):
        pass
    assert tensors_after(5) == few


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_statistics_say_what_happened() -> None:
    stages = make_stages(cut_model(mlp(), 2), rows(1)[0], signal=cdni)
    run(stages, 20)
    first, last = (stage.statistics() for stage in stages)
    assert (first.steps, first.skipped, first.unanswered) == (20, 0, 0)
    assert first.quality is not None
    assert -1 <= first.quality.cosine <= 1
    assert last.loss is not None
    assert last.quality is None
