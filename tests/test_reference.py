"""All stages in one process."""

from __future__ import annotations

from copy import deepcopy
from itertools import cycle
from typing import Any

import pytest
import torch
from nets import (
    CLASSES,
    Batch,
    adam,
    assert_equal,
    cdni,
    make_stages,
    mlp,
    rows,
    sequences,
    state,
    token_loss,
    transformer,
)
from torch import Tensor, nn

from stepahead.pipeline import Reference, accuracy, cut_model, locked, synthetic


def trained(batches: list[Batch], stages: int = 3, **settings: Any) -> list[Tensor]:
    torch.manual_seed(11)
    recipe = {"signal": cdni} | settings.pop("recipe", {})
    groups = cut_model(mlp(), stages)
    reference = Reference(make_stages(groups, batches[0], **recipe), **settings)
    list(reference.train(batches))
    return state(groups) + state([stage.signal for stage in reference.stages[:-1]])


@pytest.mark.parametrize("settings", [{"lag": 1}, {"lag": 4}, {"lag": [5, 2, 1]}, {"lag": 6, "mode": "free"}])
def test_the_same_seed_gives_the_same_run(settings: dict[str, Any]) -> None:
    batches = rows(15)
    assert_equal(trained(batches, **settings), trained(batches, **settings))


def test_lags_and_modes_differ() -> None:
    batches = rows(15)
    settings: list[dict[str, Any]] = [
        {"lag": 1},
        {"lag": 3},
        {"lag": 3, "mode": "free"},
        {"lag": 3, "mode": "free", "recipe": {"seed": 1}},
    ]
    runs = [trained(batches, **each) for each in settings]
    for index, run in enumerate(runs):
        assert not any(torch.equal(run[0], other[0]) for other in runs[:index])


def test_dropout_does_not_depend_on_the_stream_outside() -> None:
    batches = sequences(6)

    def run(outside: int) -> list[Tensor]:
        torch.manual_seed(1)
        groups = cut_model(transformer(), 3)
        signal = synthetic("token", classes=CLASSES, optimizer=adam)
        reference = Reference(make_stages(groups, batches[0], signal=signal, loss=token_loss))
        torch.manual_seed(outside)
        list(reference.train(batches))
        return state(groups)

    assert_equal(run(1), run(2))


def test_reports_count_steps_and_samples() -> None:
    batches = [*rows(3), *rows(1, size=5)]
    reference = Reference(make_stages(cut_model(mlp(), 3), batches[0], signal=cdni))
    reports = list(reference.train(batches))
    assert [report.step for report in reports] == [0, 1, 2, 3]
    assert [report.samples for report in reports] == [8, 8, 8, 5]
    assert all(report.loss > 0 for report in reports)
    assert [report.step for report in reference.train(cycle(batches), steps=2)] == [4, 5]
    assert reference.step == 6


def test_training_can_be_broken_off_and_taken_up_again() -> None:
    batches = rows(10)
    reference = Reference(make_stages(cut_model(mlp(), 3), batches[0], signal=cdni), lag=3)
    for report in reference.train(batches):
        if report.step == 4:
            break
    assert [stage.statistics().unanswered for stage in reference.stages] == [0, 0, 0]
    assert [report.step for report in reference.train(batches)] == list(range(5, 15))


def test_evaluation_between_steps_changes_nothing() -> None:
    batches = rows(8)

    def run(evaluate: bool) -> list[Tensor]:
        torch.manual_seed(3)
        groups = cut_model(
            nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES)), 2
        )
        reference = Reference(make_stages(groups, batches[0], signal=cdni))
        for _ in reference.train(batches):
            if evaluate:
                reference.evaluate(batches[:2], {"accuracy": accuracy})
        return state(groups)

    assert_equal(run(True), run(False))


def test_evaluation_is_the_mean_over_samples() -> None:
    model = mlp()
    batches = [*rows(2), *rows(1, size=3)]
    reference = Reference(make_stages(cut_model(deepcopy(model), 3), batches[0], signal=cdni))
    result = reference.evaluate(batches, {"accuracy": accuracy})
    data, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert result["loss"] == pytest.approx(nn.CrossEntropyLoss()(model(data), labels).item(), rel=1e-5)
    assert result["accuracy"] == pytest.approx(accuracy(model(data), labels).item())


def test_decoupled_training_learns() -> None:
    """A task with structure: every signal that trains brings the loss down, a silent one less."""
    torch.manual_seed(2)
    teacher = mlp(depth=1)
    batches = [(data, teacher(data).argmax(dim=1)) for data, _ in rows(300, size=32)]
    losses: dict[str, float] = {}
    for name, signal in [("locked", locked), ("cdni", cdni)]:
        torch.manual_seed(5)
        reference = Reference(make_stages(cut_model(mlp(), 3), batches[0], signal=signal))
        reports = list(reference.train(batches))
        losses[name] = sum(report.loss for report in reports[-20:]) / 20
        assert losses[name] < 0.6 * reports[0].loss
    assert losses["locked"] <= losses["cdni"]


def test_one_stage_alone_is_plain_training() -> None:
    batches = rows(5)
    reference = Reference(make_stages(cut_model(mlp(), 1), batches[0]))
    assert len(list(reference.train(batches))) == 5
    with pytest.raises(StopIteration):
        next(reference.train([]))
