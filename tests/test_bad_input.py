"""What is wrong, in one sentence, with the names and the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from nets import CLASSES, activation, adam, assert_equal, cdni, cnn, images, make_stages, mlp, rows, sent, state
from torch import Tensor, nn
from torch.optim import LBFGS, SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stepahead.pipeline import (
    Activation,
    CutError,
    Gradient,
    GradientKind,
    LabelError,
    Linear,
    MessageError,
    NonFiniteError,
    Reference,
    Stage,
    Synthetic,
    UsageError,
    blend,
    cut_model,
    locked,
    parse_device,
    probe,
    synthetic,
)

NAN, INF = float("nan"), float("inf")


def stages_of(model: nn.Module | None = None, stages: int = 3, **recipe: Any) -> list[Stage]:
    return make_stages(cut_model(model or mlp(), stages), rows(1)[0], **{"signal": cdni} | recipe)


def spoil(tensor: Tensor, value: float) -> Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[3] = value
    return spoilt


class Spoiler(nn.Module):
    """Passes its input on; at the planted steps one value of it is spoilt, on the way down or on the way back."""

    def __init__(self, forward: dict[int, float] | None = None, backward: dict[int, float] | None = None) -> None:
        super().__init__()
        self.planted = forward or {}, backward or {}
        self.step = -1

    def forward(self, h: Tensor) -> Tensor:
        if not self.training:
            return h
        self.step += 1
        down, up = (planted.get(self.step) for planted in self.planted)
        if up is not None:
            h.register_hook(lambda gradient: spoil(gradient, up))
        return h if down is None else spoil(h, down)


def spoilt_model(spoiler: Spoiler) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), spoiler, nn.Linear(16, CLASSES))


SIGNALS = [pytest.param(cdni, id="synthetic"), pytest.param(locked, id="locked")]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("signal", SIGNALS)
def test_stop_names_stage_tensor_and_step_of_an_activation(signal: Any, value: float) -> None:
    groups = cut_model(spoilt_model(Spoiler(forward={2: value})), at=[2, 4])
    reference = Reference(make_stages(groups, rows(1)[0], signal=signal))
    with pytest.raises(NonFiniteError, match=r"stage 1, step 2 \(2\.\.3\): its activation has \d+ of 128 values"):
        list(reference.train(rows(5)))


@pytest.mark.parametrize("value", [NAN, INF])
def test_stop_names_stage_tensor_and_step_of_a_gradient(value: float) -> None:
    groups = cut_model(spoilt_model(Spoiler(backward={2: value})), at=[2, 4])
    reference = Reference(make_stages(groups, rows(1)[0], signal=locked))
    with pytest.raises(NonFiniteError, match=r"stage 1, step 2 \(2\.\.3\): the gradient of '2.weight' has"):
        list(reference.train(rows(5)))


def test_stop_names_the_data() -> None:
    data, label = rows(1)[0]
    with pytest.raises(NonFiniteError, match=r"stage 0, step 0 \(0\.\.2\): the activation from above has 1 of 96"):
        list(Reference(stages_of()).train([(spoil(data, NAN), label)]))


def test_stop_names_a_gradient_from_below() -> None:
    stage = stages_of()[0]
    list(stage.step_ahead(activation()))
    gradient = Gradient(edge="0>1", step=0, tensors=(torch.full((8, 16), NAN),), kind=GradientKind.TARGET)
    before = state([stage.signal])
    with pytest.raises(NonFiniteError, match=r"step 0 \(0\.\.2\): the gradient from below has 128 of 128"):
        list(stage.learn(gradient))
    assert_equal(state([stage.signal]), before)


def test_stop_names_a_predictor_that_went_wild() -> None:
    stage = stages_of()[0]
    signal: Any = stage.signal
    signal.predictor.out.bias.data[0] = INF
    before = state([stage.group])
    with pytest.raises(NonFiniteError, match=r"step 0 \(0\.\.2\): the gradient of its signal has 8 of 128"):
        list(stage.step_ahead(activation()))
    assert_equal(state([stage.group]), before)


def test_stop_names_the_gradient_of_the_weights() -> None:
    stage = stages_of(optimizer=partial(SGD, lr=0.1))[0]
    next(stage.group.parameters()).register_hook(lambda gradient: spoil(gradient, NAN))
    before = state([stage.group])
    with pytest.raises(NonFiniteError, match=r"step 0 \(0\.\.2\): the gradient of '0.weight' has \d+ of 192"):
        list(stage.step_ahead(activation()))
    assert_equal(state([stage.group]), before)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("spoiler", [Spoiler(forward={3: NAN}), Spoiler(backward={3: INF})], ids=["down", "up"])
def test_skip_goes_on_with_finite_weights(signal: Any, spoiler: Spoiler) -> None:
    spoiler.step = -1
    groups = cut_model(spoilt_model(spoiler), at=[2, 4])
    reference = Reference(make_stages(groups, rows(1)[0], signal=signal, on_non_finite="skip"))
    assert len(list(reference.train(rows(8)))) == 8
    statistics = [stage.statistics() for stage in reference.stages]
    assert all(torch.isfinite(tensor).all() for tensor in state([stage.group for stage in reference.stages]))
    assert all(torch.isfinite(tensor).all() for tensor in state([s.signal for s in reference.stages[:-1]]))
    assert statistics[1].skipped == 1
    assert [s.unanswered for s in statistics] == [0, 0, 0]


@pytest.mark.parametrize("signal", SIGNALS)
def test_skip_passes_a_spoilt_batch_over_as_if_it_had_not_come(signal: Any) -> None:
    """BatchNorm's buffers and Adam's moments included; only the count of steps differs."""
    batches = rows(6)
    with_spoilt = [*batches[:3], (spoil(batches[0][0], NAN), batches[0][1]), *batches[3:]]

    def trained(data: list[Any]) -> list[Tensor]:
        torch.manual_seed(1)
        groups = cut_model(spoilt_model(Spoiler()), at=[2, 4])
        stages = make_stages(groups, batches[0], signal=signal, on_non_finite="skip", optimizer=partial(SGD, lr=0.1))
        for _ in Reference(stages, lag=1).train(data):
            pass
        return state(groups)

    assert_equal(trained(with_spoilt), trained(batches))


def test_skip_on_the_first_step_of_all() -> None:
    data, label = images(1)[0]
    stages = make_stages(cut_model(cnn(), 3), (data, label), on_non_finite="skip")
    reports = list(Reference(stages).train([(spoil(data, INF), label), (data, label)]))
    assert len(reports) == 2
    assert [stage.skipped for stage in stages] == [1, 1, 1]


def bad_messages() -> list[Any]:
    good = torch.randn(8, 12)
    label = torch.zeros(8, dtype=torch.int64)
    return [
        pytest.param(
            activation(1, good.double(), label),
            "stage 0, step 1: the activation from above is float64[8, 12], the first one was float32[8, 12]",
            id="dtype",
        ),
        pytest.param(
            activation(1, good[:, :11], label), "is float32[8, 11], the first one was float32[8, 12]", id="shape"
        ),
        pytest.param(replace(activation(1, good, label), training=False), "use evaluate()", id="evaluation"),
        pytest.param(activation(1, good[:0], label[:0]), "stage 0, step 1: the batch is empty", id="empty"),
        pytest.param(replace(activation(1), tensors=(good, good)), "takes one tensor a batch, got 2", id="two"),
        pytest.param(
            activation(1, good, label.float()), "the label is float32[8], the first one was int64[8]", id="label dtype"
        ),
        pytest.param(activation(2, good, label), "stage 0 waits for step 1, got step 2", id="gap"),
        pytest.param(activation(0, good, label), "stage 0 waits for step 1, got step 0", id="duplicate"),
        pytest.param(
            activation(1, good, label, edge="0>1"), "listens on edge data>0; a message came for 0>1", id="edge"
        ),
    ]


@pytest.mark.parametrize(("message", "text"), bad_messages())
def test_messages_that_do_not_fit(message: Activation, text: str) -> None:
    stage = stages_of()[0]
    list(stage.step_ahead(activation()))
    with pytest.raises(MessageError) as caught:
        list(stage.step_ahead(message))
    assert text in str(caught.value)
    list(stage.step_ahead(activation(1)))  # the stage goes on with the right one


def test_gradients_that_do_not_fit() -> None:
    stage = stages_of()[0]
    list(stage.step_ahead(activation()))
    good = Gradient(edge="0>1", step=0, tensors=(torch.randn(8, 16),), kind=GradientKind.TARGET)
    for bad, text in [
        (replace(good, step=1), "step 1: a gradient came, but no batch of that step waits for one"),
        (replace(good, edge="1>2"), "a gradient came for edge 1>2, not 0>1"),
        (replace(good, tensors=(torch.randn(8, 15),)), r"is float32\[8, 15\], the activation was float32\[8, 16\]"),
        (replace(good, tensors=(torch.randn(8, 16).double(),)), "is float64"),
    ]:
        with pytest.raises(MessageError, match=text):
            list(stage.learn(bad))
    list(stage.learn(good))
    with pytest.raises(MessageError, match="no batch of that step waits for one"):
        list(stage.learn(good))


def test_a_locked_stage_must_get_its_gradient_first() -> None:
    stage = stages_of(signal=locked)[0]
    list(stage.step_ahead(activation()))
    with pytest.raises(MessageError, match="must get the gradient of step 0 before the activation of step 1"):
        list(stage.step_ahead(activation(1)))


@pytest.mark.parametrize("signal", [cdni, probe(loss=nn.CrossEntropyLoss(), classes=CLASSES, optimizer=adam)])
@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_outside_the_classes(signal: Any, label: int) -> None:
    stage = stages_of(signal=signal)[0]
    with pytest.raises(LabelError, match=rf"stage 0, step 0: label {label} is outside the 5 classes 0\.\.4"):
        list(stage.step_ahead(activation(label=torch.tensor([0, 1, 2, 3, label, 0, 1, 2]))))


def test_a_label_outside_the_classes_in_a_batch_that_was_left_out() -> None:
    stage = stages_of(signal=cdni, chance=1e-9)[0]
    list(stage.step_ahead(activation(label=torch.full((8,), CLASSES))))
    told = Gradient(edge=stage.edge_below, step=0, tensors=(torch.zeros(8, 16),), kind=GradientKind.TARGET)
    with pytest.raises(LabelError, match=r"stage 0, step 0: label 5 is outside the 5 classes 0\.\.4"):
        list(stage.learn(told))


def test_a_label_outside_the_classes_at_the_loss() -> None:
    data, _ = rows(1)[0]
    with pytest.raises(LabelError, match=r"stage 2, step 0: the loss refuses a label .* Target 7 is out of bounds"):
        list(Reference(stages_of(signal=locked)).train([(data, torch.full((8,), 7))]))


def test_labels_that_losses_ignore_are_no_mistake() -> None:
    data, label = rows(1)[0]
    label[2] = -100
    assert len(list(Reference(stages_of()).train([(data, label)] * 3))) == 3


def test_a_predictor_that_needs_labels_and_gets_none() -> None:
    stages = stages_of(loss=lambda output, label: output.square().mean())
    with pytest.raises(UsageError, match="made for labels got none; give the batches labels, or no classes"):
        list(Reference(stages).train([(torch.randn(8, 12), None)]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"optimizer": adam, "model": cnn()}, r"stage 2 \(2\) has no parameters to train"),
        ({"optimizer": [adam, adam]}, "the list of optimizer has 2 entries, and 10 are needed"),
        ({"signal": [locked]}, "the list of signal has 1 entries, and 9 are needed"),
        ({"optimizer": LBFGS}, "LBFGS runs the model many times a step"),
        ({"lr_schedule": ReduceLROnPlateau}, "ReduceLROnPlateau waits for a metric"),
        ({"loss": nn.AdaptiveLogSoftmaxWithLoss(5, 5, [2])}, "the loss has parameters that nothing would train"),
    ],
)
def test_recipes_that_cannot_be(arguments: dict[str, Any], text: str) -> None:
    model: nn.Sequential = arguments.pop("model", mlp(depth=9))
    groups = cut_model(model, 10)
    example = images(1)[0] if isinstance(model[0], nn.Conv2d) else rows(1)[0]
    if "optimizer" not in arguments:
        arguments["optimizer"] = [adam if list(group.parameters()) else None for group in groups]
    with pytest.raises(UsageError, match=text):
        make_stages(groups, example, **arguments)


def test_a_loss_that_is_not_one_number() -> None:
    stages = stages_of(loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(UsageError, match=r"the loss returned shape \[8\]; it must be one number"):
        list(Reference(stages).train(rows(1)))


def test_a_layer_that_fails_is_placed() -> None:
    data, label = rows(1)[0]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        list(Reference(stages_of()).train([(data[:, :5], label)]))
    assert caught.value.__notes__ == ["in stage 0 (0..2), on an input float32[8, 5]"]


def test_a_cut_that_no_gradient_crosses() -> None:
    class Indices(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.argmax(dim=1)

    model = nn.Sequential(nn.Linear(12, 16), Indices(), nn.Embedding(16, CLASSES))
    stages = make_stages(cut_model(model, at=["2"]), rows(1)[0])
    with pytest.raises(CutError, match=r"a torch\.int64 comes over the cut, and no gradient goes back; cut elsewhere"):
        list(Reference(stages).train(rows(1)))


class AddsInPlace(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.add_(1)


@pytest.mark.parametrize("first", [AddsInPlace(), nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True))])
@pytest.mark.parametrize("cut", [0, 1])
def test_an_undeclared_in_place_layer_after_a_cut(first: nn.Module, cut: int) -> None:
    layers: list[nn.Module] = [first, nn.Linear(12, CLASSES)]
    model = nn.Sequential(*([nn.Linear(12, 12)] * cut), *layers)
    stages = make_stages(cut_model(model, at=[1]), rows(1)[0]) if cut else make_stages(cut_model(model, 1), rows(1)[0])
    with pytest.raises(CutError, match=rf"stage {cut} \(.*\) changes its input in place"):
        list(Reference(stages).train(rows(1)))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: synthetic("liner", optimizer=adam)(torch.randn(4, 3), None),
            "no predictor 'liner'; did you mean 'linear'",
        ),
        (
            lambda: synthetic("mlp", optimizer=adam, hiden=3)(torch.randn(4, 3), None),
            "no option 'hiden'; did you mean 'hidden'",
        ),
        (lambda: synthetic("mlp", optimizer=adam, norm="bach")(torch.randn(4, 3), None), "did you mean 'batch'"),
        (lambda: synthetic("conv", optimizer=adam)(torch.randn(4, 3), None), r"needs images .*, not \[4, 3\]"),
        (
            lambda: synthetic("conv", optimizer=adam, kernel=4)(torch.randn(4, 3, 5, 5), None),
            "kernel is 4; it must be odd",
        ),
        (lambda: synthetic("token", optimizer=adam)(torch.randn(4, 3), None), r"needs sequences .*, not \[4, 3\]"),
        (lambda: synthetic("linear", optimizer=adam)(torch.randn(4, 3, 5, 5), None), "for images use 'conv'"),
        (lambda: blend(1.5, optimizer=adam)(torch.randn(4, 3), None), "is 1.5; it must lie between 0 and 1"),
        (lambda: Synthetic(Linear(3), adam, every=0), "every is 0 and must be at least 1"),
        (lambda: Synthetic(Linear(3), adam, rows=0.0), "rows is 0.0 and must be 1, 1/2, 1/3"),
        (lambda: probe(loss=nn.MSELoss(), optimizer=adam, classes=3)(torch.randn(4), None), "no probe is known"),
        (lambda: parse_device("gpu"), "'gpu' names no device"),
        (lambda: parse_device("cuda:99"), "device cuda:99 is not there: this machine has"),
        (lambda: parse_device("meta"), "of a kind that stepahead cannot use"),
        (lambda: Reference(stages_of(), lag=0), r"lags \[0, 0, 0\] do not suit 3 stages"),
        (lambda: Reference(stages_of(), lag=[2]), "do not suit 3 stages"),
        (lambda: Reference(stages_of()).evaluate([]), "no batch to evaluate on"),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make()


def test_every_message_of_a_stage_can_be_sent() -> None:
    """What the tests above build by hand has the form of what stages send."""
    stages = stages_of()
    downs, ups = sent(list(stages[0].step_ahead(activation())))
    assert [message.edge for message in downs] == ["0>1"]
    assert ups == []
    downs, ups = sent(list(stages[1].step_ahead(downs[0])))
    assert [message.edge for message in downs] + [message.edge for message in ups] == ["1>2", "0>1"]
