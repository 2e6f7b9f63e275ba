"""What was once wrong, each with a line on how it showed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from nets import CLASSES, Batch, adam, assert_equal, cdni, make_stages, mlp, plain_backprop, rows, state
from rich.console import Console
from torch import Tensor, nn
from torch.optim import SGD, Adam, SparseAdam
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from stepahead.launch import Track
from stepahead.launch.screen import Screen
from stepahead.pipeline import (
    CutError,
    LabelError,
    Needs,
    NonFiniteError,
    Reference,
    Signal,
    Stage,
    UsageError,
    cut_model,
    layers_of,
    locked,
    probe,
    synthetic,
)

NAN = float("nan")
LAGS = [1, *[2] * 5, 1]
"""One that an earlier run left on its way, then six; the last of a run is learnt from as it drains."""
sgd = partial(SGD, lr=0.1)


def train(model: Any, batches: list[Batch], stages: int = 2, lag: int = 2, **recipe: Any) -> list[Stage]:
    made = make_stages(cut_model(model, stages), batches[0], **{"signal": cdni} | recipe)
    for _ in Reference(made, lag=lag).train(batches):
        pass
    return made


def test_a_layer_that_comes_twice_was_left_out() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), nn.Sequential(relu, relu), nn.Linear(4, 2))
    assert [layer.name for layer in layers_of(model)] == ["0", "1", "2", "3.0", "3.1", "4"]
    shared = nn.Linear(4, 4)
    with pytest.raises(CutError, match="one tied weight"):
        cut_model(nn.Sequential(shared, nn.ReLU(), shared), 2)


def test_a_model_with_a_forward_of_its_own_was_taken_apart() -> None:
    class Residual(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return input * 2

    with pytest.raises(CutError, match="a Residual is not a chain of layers"):
        cut_model(Residual(nn.Linear(4, 4), nn.ReLU()), 2)
    hooked = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    hooked.register_forward_hook(lambda *_: None)
    assert [layer.name for layer in layers_of([hooked, nn.Linear(4, 4)])] == ["0", "1"]


def test_assembling_set_layers_that_were_held_in_eval_mode_to_train() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    model[1].eval()
    groups, batches = cut_model(model, 2), rows(4)
    expected = plain_backprop(groups, batches, nn.CrossEntropyLoss())
    for _ in Reference(make_stages(groups, batches[0])).train(batches):
        pass
    assert_equal(state(groups), state(expected))


def test_assembling_and_evaluating_overwrote_the_data() -> None:
    class Adds(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.add_(1)

    data = torch.zeros(4, 12)
    batch = (data, torch.zeros(4, dtype=torch.int64))
    stages = make_stages(cut_model([Adds(), nn.Linear(12, CLASSES)], 1), batch)
    assert not data.any()
    with pytest.raises(CutError, match="changes its input in place"):
        Reference(stages).evaluate([batch])


def lags_used(reference: Reference, run: Any) -> list[int]:
    """How many steps late the first stage learns, over a run."""
    stage, lags = reference.stages[0], []
    learn = stage.learn

    def watched(gradient: Any) -> Any:
        lags.append(stage.step - gradient.step)
        return learn(gradient)

    stage.learn = watched  # type: ignore[method-assign]
    list(run())
    return lags


def failing(batches: list[Batch]) -> Iterator[Batch]:
    yield from batches
    raise OSError("the disk is gone")


@pytest.mark.parametrize("way", ["track", "held generator", "failing data"])
def test_a_run_that_was_broken_off_made_the_next_one_lag(way: str) -> None:
    reference = Reference(make_stages(cut_model(mlp(), 3), rows(1)[0], signal=cdni), lag=2)
    if way == "failing data":
        with pytest.raises(OSError, match="disk"):
            list(reference.train(failing(rows(5))))
    else:
        held: Any = reference.train(rows(10))
        reports = Track(held, total=10, console=Console(file=io.StringIO())) if way == "track" else held
        for report in reports:
            if report.step == 4:
                break
    assert lags_used(reference, lambda: reference.train(rows(6))) == LAGS
    assert [stage.statistics().unanswered for stage in reference.stages] == [0, 0, 0]


def test_a_run_that_failed_says_so_when_it_is_taken_up() -> None:
    reference = Reference(make_stages(cut_model(mlp(), 2), rows(1)[0]))
    data, label = rows(1)[0]
    with pytest.raises(NonFiniteError):
        list(reference.train([(data, label), (data * NAN, label)]))
    with pytest.raises(UsageError, match="this run failed at step 1; assemble its stages again"):
        list(reference.train([(data, label)]))


class SpoilsGradient(nn.Module):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.step = at, -1

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            self.step += 1
            if self.step == self.at:
                h.register_hook(lambda gradient: gradient * NAN)
        return h


@pytest.mark.parametrize("signal", [cdni, locked])
def test_skipping_a_bad_gradient_kept_batchnorm_moved(signal: Any) -> None:
    """Every stage that did not step is as if the batch had not come, its buffers and schedules' counts included."""
    norm = nn.BatchNorm1d(8)
    model = nn.Sequential(nn.Linear(12, 8), norm, SpoilsGradient(at=2), nn.Linear(8, CLASSES))
    schedule = {"lr_schedule": lambda optimizer: StepLR(optimizer, 1, 0.5)}
    batches = rows(5)
    stages = make_stages(cut_model(model, at=[3]), batches[0], signal=signal, on_non_finite="skip", **schedule)
    for _ in Reference(stages, lag=1).train(batches):
        pass
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 4
    assert stages[0].skipped == 1
    assert all(stage.updater and stage.updater.optimizer.param_groups[0]["lr"] == 0.01 / 2**5 for stage in stages)


def test_infinity_that_the_next_layer_swallows_was_trained_on() -> None:
    class Overflows(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return (
                h * (h.amax() * torch.inf).nan_to_num(1.0, 1e38, 1.0) * 1e38 if self.training and h.amax() > 50 else h
            )

    model = nn.Sequential(nn.Linear(12, 8), Overflows(), nn.Hardtanh(), nn.Linear(8, CLASSES))
    data, label = rows(1)[0]
    stages = make_stages(cut_model(model, at=[2]), (data, label), on_non_finite="skip")
    for _ in Reference(stages).train([(data, label), (1000 * data, label)]):
        pass
    assert [stage.skipped for stage in stages] == [1, 1]


def test_a_predictor_learnt_from_what_overflowed() -> None:
    stage = make_stages(cut_model(mlp(), 2), rows(1)[0], signal=synthetic("linear", optimizer=adam))[0]
    signal: Any = stage.signal
    before = state([signal])
    signal.learn(torch.full((8, 16), 1e38), None, torch.full((8, 16), 1e38), 0)
    assert_equal(state([signal]), before)
    assert all(parameter.grad is None for parameter in signal.parameters())


def test_a_probe_learnt_from_nan() -> None:
    signal: Any = probe(loss=nn.MSELoss(), classes=3, optimizer=adam)(torch.randn(4, 6), None)
    before = state([signal])
    label = torch.randn(4, 3)
    label[0, 0] = NAN
    assert not torch.isfinite(signal.gradient(torch.randn(4, 6), label)).all()
    assert_equal(state([signal]), before)


def test_a_frozen_last_stage_hid_a_nan_loss() -> None:
    stages = make_stages(
        cut_model(mlp(), 2), rows(1)[0], optimizer=[adam, None], loss=lambda output, label: output.mean() * NAN
    )
    with pytest.raises(NonFiniteError, match=r"stage 1, step 0 .*: the gradient of its signal"):
        list(Reference(stages).train(rows(1)))


def test_a_predictors_schedule_counted_more_batches_than_there_were() -> None:
    signal = synthetic(
        "linear", optimizer=adam, every=3, lr_schedule=lambda o: OneCycleLR(o, max_lr=0.1, total_steps=11)
    )
    assert train(mlp(), rows(10), signal=signal)[0].step == 10


def test_a_predictor_with_batchnorm_broke_on_one_row() -> None:
    batches = [*rows(2), *rows(1, size=1), *rows(1)]
    signal = synthetic("mlp", norm="batch", classes=CLASSES, optimizer=adam, rows=0.125)
    assert train(mlp(), batches, signal=signal)[0].step == 4


def test_every_nth_batch_and_some_rows_met_the_same_rows_for_ever() -> None:
    signal: Any = synthetic("linear", optimizer=sgd, every=2, rows=0.5)(torch.randn(4, 2), None)
    learnt: list[list[float]] = []
    signal.predictor.register_forward_hook(lambda module, inputs, output: learnt.append(inputs[0][:, 0].tolist()))
    h = torch.arange(8.0).reshape(4, 2)
    for step in (0, 2, 4):
        signal.learn(h, None, h, step)
    assert learnt == [[0, 4], [2, 6], [0, 4]]


def test_a_loss_that_draws_depended_on_the_stream_outside() -> None:
    def run(outside: int) -> list[Tensor]:
        torch.manual_seed(3)
        model, batches = mlp(), rows(4)
        torch.manual_seed(outside)
        loss = nn.CrossEntropyLoss()
        stages = train(model, batches, loss=lambda output, label: loss(nn.functional.dropout(output), label))
        return state([stage.group for stage in stages])

    assert_equal(run(1), run(2))


def test_predictors_were_born_from_the_stream_outside() -> None:
    def born(outside: int, seed: int) -> list[Tensor]:
        torch.manual_seed(outside)
        signal = synthetic("mlp", optimizer=adam)
        example = (torch.zeros(4, 12), torch.zeros(4, dtype=torch.int64))
        return state([make_stages(cut_model(mlp(), 2), example, signal=signal, seed=seed)[0].signal])

    assert_equal(born(1, 5), born(2, 5))
    assert not torch.equal(born(1, 5)[0], born(1, 6)[0])


def test_ignored_places_made_the_others_too_small() -> None:
    """The mean of the loss leaves them out: the gradient of one place is the same, however much padding there is."""
    signal: Any = synthetic("token", classes=CLASSES, optimizer=sgd)(torch.randn(2, 4, 6), None)
    signal.predictor.out.bias.data += 1
    h, y = torch.randn(2, 4, 6), torch.randint(CLASSES, (2, 4))
    padded = y.clone()
    padded[:, 2:] = -100
    assert torch.allclose(signal.gradient(h, padded)[:, :2] * 4, signal.gradient(h, y)[:, :2] * 8)


def test_a_probe_on_half_precision() -> None:
    signal = probe(loss=nn.CrossEntropyLoss(), classes=CLASSES, optimizer=adam)(torch.randn(4, 6), None)
    answer = signal.gradient(torch.randn(4, 6).bfloat16(), torch.randint(CLASSES, (4,)))
    assert answer is not None
    assert answer.dtype == torch.bfloat16


def test_a_layer_that_folds_places_into_the_batch_was_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Flatten(0, 1), nn.Linear(8, CLASSES))
    batch = (torch.randn(4, 3, 6), torch.randint(CLASSES, (12,)))
    assert train(model, [batch] * 2, signal=locked)[0].step == 2


def test_an_optimizer_that_leaves_parameters_out_let_their_gradients_grow() -> None:
    def only_matrices(parameters: Any) -> SGD:
        return SGD([parameter for parameter in parameters if parameter.dim() == 2], lr=0.0)

    batch = rows(1)[0]
    stages = train(mlp(), [batch] * 40, signal=locked, optimizer=only_matrices)
    assert all(parameter.grad is None for stage in stages for parameter in stage.group.parameters())


def test_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Flatten(), nn.Linear(24, CLASSES))
    batch = (torch.randint(9, (4, 3)), torch.randint(CLASSES, (4,)))
    stages = train(model, [batch] * 3, optimizer=[partial(SparseAdam, lr=0.01), adam], signal=locked)
    assert stages[0].statistics().gradient_norm


def test_bad_labels_in_an_evaluation() -> None:
    reference = Reference(make_stages(cut_model(mlp(), 2), rows(1)[0]))
    data, _ = rows(1)[0]
    with pytest.raises(LabelError, match="Target 7 is out of bounds"):
        reference.evaluate([(data, torch.full((8,), 7))])
    with pytest.raises(UsageError, match=r"the loss cannot take an output float32\[8, 5\] and a label int64\[5\]"):
        reference.evaluate([(data, torch.zeros(5, dtype=torch.int64))])


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"optimizer": Adam([nn.Parameter(torch.ones(1))])}, r"the optimizer of stage 0 .* is a Adam; give a function"),
        (
            {"optimizer": lambda parameters: Adam([])},
            r"the optimizer of stage 0 .* cannot be made: .*empty parameter list",
        ),
        ({"signal": "locked"}, "the signal of stage 0 is a str; give a function that makes one"),
        ({"on_non_finite": "Skip"}, "on_non_finite is 'Skip'; it must be 'stop' or 'skip'"),
        ({"clip": -1.0}, "clip is -1.0; a norm to clip to must be above 0"),
        (
            {"signal": synthetic("low-rank", rank=0, optimizer=adam)},
            "a low-rank predictor's rank is 0; it must be at least 1",
        ),
        ({"signal": synthetic("linear", rows=0.9, optimizer=adam)}, "rows is 0.9 and must be 1, 1/2, 1/3"),
    ],
)
def test_settings_that_were_taken_silently_or_ended_in_torch(recipe: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make_stages(cut_model(mlp(), 2), rows(1)[0], **recipe)


def test_a_signal_that_waited_for_what_nothing_sends_was_run_without() -> None:
    class Feedback(Signal):
        needs = Needs.OUTPUT_ERROR

    with pytest.raises(UsageError, match="Feedback needs the error at the model's output, which nothing sends"):
        make_stages(cut_model(mlp(), 2), rows(1)[0], signal=lambda h, y: Feedback())


def test_more_settings_that_were_taken_silently() -> None:
    stages = make_stages(cut_model(mlp(), 2), rows(1)[0])
    mode: Any = "exakt"
    with pytest.raises(UsageError, match="mode is 'exakt'; it must be 'exact' or 'free'"):
        Reference(stages, mode=mode)
    with pytest.raises(UsageError, match="do not suit 2 stages"):
        Reference(stages, lag=[2, 2, 2])
    with pytest.raises(CutError, match="the cut points are '12'; give a list"):
        cut_model(mlp(), at="12")
    with pytest.raises(LabelError, match=r"the activation has 8 samples, the label is int64\[5\]"):
        list(
            Reference(make_stages(cut_model(mlp(), 2), rows(1)[0], signal=cdni)).train(
                [(rows(1)[0][0], torch.zeros(5).long())]
            )
        )


def test_the_name_of_a_jobs_function_was_printed_as_a_picture() -> None:
    text = io.StringIO()
    Screen(file=text, width=60).print("job.py:fire: 2 stages")
    assert text.getvalue() == "job.py:fire: 2 stages\n"
