"""The locked schedules of torch.distributed.pipelining, in processes: plain backprop, whatever the order."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import faulty, launched, run, session
from nets import CLASSES, adam, mlp, rows
from test_processes import job_of, train
from torch import nn

from stepahead.pipeline import (
    MICROBATCHED,
    Recipe,
    Reference,
    TrainingError,
    UsageError,
    accuracy,
    assemble,
    check_microbatches,
    cut_model,
    groups_of,
    locked,
)
from stepahead.workers import newest_snapshot, read_snapshot
from stepahead.workers.locked import is_available

pytestmark = pytest.mark.skipif(not is_available(), reason="torch's schedules need 2.13")
FEATURES = 12
CASES = [
    *((schedule, 2, microbatches) for schedule in MICROBATCHED for microbatches in (2, 4)),
    ("gpipe", 2, 1),
    ("1f1b", 3, 4),
    ("interleaved-zb", 3, 6),
    ("zbv", 3, 4),
]


def deep() -> nn.Sequential:
    """Return a model with a group for two of each of three stages."""
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh()) for _ in range(5)]
    return nn.Sequential(*hidden, nn.Linear(FEATURES, CLASSES))


@pytest.mark.parametrize(("schedule", "stages", "microbatches"), CASES)
def test_the_weights_are_those_of_plain_backprop(schedule: str, stages: int, microbatches: int, tmp_path: Path) -> None:
    model, batches = deep(), [*rows(5, size=24), *rows(1, size=12)]  # a shorter last batch
    test = rows(2, size=7)
    groups = cut_model(deepcopy(model), 1)
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=locked, optimizer=adam)
    reference = Reference(assemble(groups, batches[0], recipe))
    losses = [report.loss for report in reference.train(batches)]
    expected = {name: value for group in groups for name, value in group.model_state().items()}
    job = job_of(model, batches, test=test, metrics={"accuracy": accuracy})
    folder = tmp_path / "run"
    summary = train(job, stages=stages, schedule=schedule, microbatches=microbatches, run_dir=str(folder))
    found = read_snapshot(newest_snapshot(folder))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert summary["steps"] == len(batches)
    assert summary["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    figures = reference.evaluate(test, {"accuracy": accuracy})
    assert summary["metrics"] == pytest.approx(figures, rel=1e-4)
    assert [stage["parameters"] for stage in summary["stages"]] == [
        sum(
            weight.numel()
            for group in groups_of(schedule, stage, stages)
            for weight in _weights(model, stages, schedule, group)
        )
        for stage in range(stages)
    ]


def _weights(model: nn.Sequential, stages: int, schedule: str, group: int) -> list[torch.Tensor]:
    groups = cut_model(deepcopy(model), stages * len(groups_of(schedule, 0, stages)))
    return list(groups[group].parameters())


def test_the_first_try_of_a_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    """torch runs a batch to learn the shapes, which moves BatchNorm's buffers."""
    model, batches = nn.Sequential(*list(deep())[:3], nn.BatchNorm1d(FEATURES), *list(deep())[3:]), rows(4, size=8)
    folder = tmp_path / "run"
    train(job_of(model, batches), stages=2, schedule="gpipe", microbatches=2, run_dir=str(folder))
    state = read_snapshot(newest_snapshot(folder))
    assert int(state["3.num_batches_tracked"]) == 4 * 2  # for each micro-batch


def test_time_is_useful_or_idle_and_activations_are_counted(tmp_path: Path) -> None:
    peaks: dict[str, list[int]] = {}
    for schedule in ("gpipe", "1f1b", "zbv"):
        job = job_of(deep(), rows(6, size=32))
        summary = train(job, stages=2, schedule=schedule, microbatches=8, run_dir=str(tmp_path / schedule))
        for stage in summary["stages"]:
            assert stage["tax"] == 0.0
            assert stage["useful"] > 0.0
            assert stage["useful"] + sum(stage["idle"].values()) == pytest.approx(1.0)
            assert min(stage["idle"].values()) >= 0.0  # nothing is counted twice
        peaks[schedule] = [stage["peak_activation_bytes"] for stage in summary["stages"]]
    assert peaks["1f1b"][0] < peaks["gpipe"][0] / 2  # two graphs of micro-batches, not eight
    assert peaks["1f1b"][1] < peaks["1f1b"][0]
    assert peaks["zbv"][0] < peaks["gpipe"][0]  # each group's own graphs, not all of both


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    job = job_of(mlp(), rows(3, size=10))
    for settings, said in (
        (
            {"schedule": "1f1b", "microbatches": 1},
            r"1f1b on 2 stages cannot do with 1 micro-batches: .* --microbatches 2",
        ),
        ({"schedule": "decoupled", "microbatches": 2}, "under decoupled batches are not cut; leave it out"),
        ({"schedule": "zbv", "stages": 1}, "on one stage there is nothing to schedule"),
        ({"schedule": "1f1b", "microbatches": 4}, "a batch of 10 samples does not divide into 4 micro-batches"),
        ({"schedule": "zbv", "stages": 6}, "zbv gives each stage 2 groups of layers: 9 layers are enough for 4 stages"),
        ({"schedule": "zbv", "cut": "2"}, "which makes 2 groups, and zbv takes 4"),
        ({"schedule": "1f2b"}, "schedule is '1f2b'; .*did you mean '1f1b'"),
        ({"schedule": "1f1b", "signal": "synthetic"}, "signal is 'synthetic', but under 1f1b stages wait"),
        ({"schedule": "1f1b", "truth": "replay"}, "but locked stages wait for it in any case"),
    ):
        with pytest.raises(UsageError, match=said):
            train(job, **{"stages": 2, "run_dir": str(tmp_path / "run"), **settings})
        assert not (tmp_path / "run").exists(), "it is refused before anything starts"


def test_a_loss_that_is_no_mean_is_refused_and_what_a_layer_raises_is_said(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            raise ValueError("the layer has had enough")

    summed = job_of(mlp(), rows(3), loss=nn.CrossEntropyLoss(reduction="sum"))
    with pytest.raises(UsageError, match="under gpipe the loss must be a mean over the samples"):
        train(summed, stages=2, schedule="gpipe", microbatches=2, run_dir=str(tmp_path / "summed"))
    broken = job_of(nn.Sequential(*list(mlp())[:4], Broken(), *list(mlp())[4:]), rows(3))
    with pytest.raises(TrainingError, match="ValueError: the layer has had enough"):
        train(broken, stages=2, schedule="gpipe", microbatches=2, run_dir=str(tmp_path / "broken"))


def test_rounds_of_interleaved_schedules() -> None:
    check_microbatches("interleaved-zb", 4, 8)
    check_microbatches("interleaved-zb", 4, 3)
    with pytest.raises(UsageError, match="makes 2 rounds of equally many; --microbatches 8"):
        check_microbatches("interleaved-1f1b", 4, 9)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_that_is_killed_in_the_middle_of_a_step_is_named(stage: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--schedule", "1f1b", "--microbatches", "4"]
    with launched(faulty(folder, "kill", stage, 5, *options)) as command:
        text = command.output.read()
        assert command.wait()[0] == 3
        assert session(command.pid) == []
    assert f"stage {stage} was killed by SIGKILL" in text
    assert [fault["worker"] for fault in json.loads((folder / "summary.json").read_text())["faults"]] == [str(stage)]


def test_a_locked_baseline_of_torchs(tmp_path: Path) -> None:
    arguments: list[Any] = ["train", "digits", "--stages", "2", "--steps", "30", "--baseline", "1f1b", "--json"]
    code, text = run([*arguments, "--run-dir", str(tmp_path / "run")])
    assert code == 0, text
    baseline = json.loads(text.splitlines()[-1])["baseline"]
    assert baseline["schedule"] == "1f1b"
    assert baseline["samples_per_second"] > 0


def test_an_older_torch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepahead.launch.checks.is_available", lambda: False)
    for settings in ({"schedule": "gpipe"}, {"baseline": "1f1b"}):
        with pytest.raises(UsageError, match=r"(gpipe|1f1b) is torch's own, from torch 2.13 on; this is"):
            train(job_of(mlp(), rows(3)), stages=2, **settings)
