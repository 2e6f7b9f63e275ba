"""Stages in blocks: locked inside of each, decoupled from one to the next."""

from __future__ import annotations

import json
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from nets import SIGNALS, adam, mlp, rows
from rich.console import Console
from test_processes import job_of, train
from torch import nn

from stepahead.launch import Config
from stepahead.launch.compare import Settings, compare
from stepahead.pipeline import Recipe, Reference, UsageError, assemble, cut_model, locked, synthetic_inputs
from stepahead.workers import check_ledgers, weights_sha256


@pytest.mark.parametrize(("blocks", "at"), [(1, []), (2, [5]), (3, [5, 7]), (4, [3, 5, 7])])
def test_a_block_is_one_stage_to_the_bit(blocks: int, at: list[int], tmp_path: Path) -> None:
    model, batches = mlp(), [*rows(6), *rows(1, size=5)]
    groups = cut_model(deepcopy(model), None if at else 1, at=at)
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=SIGNALS["synthetic"], optimizer=adam)
    list(Reference(assemble(groups, batches[0], recipe), lag=3).train(batches))
    expected = weights_sha256(named for group in groups for named in group.named_weights())
    job, run_dir = job_of(model, batches, signal=SIGNALS["synthetic"]), tmp_path / "run"
    summary = train(job, stages=4, blocks=blocks, cut="3,5,7", lag="exact", run_dir=str(run_dir), ledger=True)
    assert summary["weights_sha256"] == expected
    assert check_ledgers(run_dir) >= 8 * 4


def test_blocks_leave_the_truth_off(tmp_path: Path) -> None:
    summary = train(job_of(mlp(), rows(3)), stages=4, blocks=2, run_dir=str(tmp_path / "run"))
    assert summary["truth"] == "off"
    assert [stage["predictor"] is not None for stage in summary["stages"]] == [False, True, False, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"blocks": 0}, "blocks is 0; it must be at least 1"),
        ({"blocks": 3}, "blocks is 3, and there are 2 stages to put into them"),
        ({"blocks": 2, "schedule": "1f1b"}, "blocks is 2, but all stages are locked to each other; leave it out"),
        ({"blocks": 2, "signal": "locked"}, "blocks is 2, but all stages are locked to each other; leave it out"),
        ({"blocks": 2, "truth": "stash"}, "truth is 'stash', but stages that are locked inside a block have none"),
    ],
)
def test_blocks_that_there_cannot_be(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        train(job_of(mlp(), rows(3)), **{"stages": 2, "run_dir": str(tmp_path / "run"), **settings})
    assert not (tmp_path / "run").exists(), "it is refused before anything starts"


@pytest.mark.parametrize(
    ("of_the_job", "said"),
    [
        ({"inputs": synthetic_inputs(optimizer=adam)}, "but stages that guess their inputs wait for nobody"),
        ({"signal": locked}, "but all stages are locked to each other"),
    ],
)
def test_jobs_that_there_are_no_blocks_for(of_the_job: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"blocks is 2, {said}; leave it out"):
        train(job_of(mlp(), rows(3), **of_the_job), stages=4, blocks=2, run_dir=str(tmp_path / "run"))


def test_in_a_comparison_they_are_of_the_decoupled_row_alone(tmp_path: Path) -> None:
    settings = Settings(schedules=("lockstep", "stash", "decoupled"), rounds=1, seconds=0.5)
    config = Config(stages=3, blocks=2, device="cpu", run_dir=str(tmp_path / "run"))
    console = Console(width=200, record=True, file=StringIO())
    assert compare(config, job_of(mlp(), rows(6)), settings, console) == 0
    made = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [each["error"] for each in made["rows"]] == [None] * 3
    tax = {each["schedule"]: each["tax"] for each in made["rows"]}
    assert [value > 0 for value in tax["decoupled"]] == [False, True, False]
    assert "decoupled has its stages in 2 blocks, locked inside of each" in console.export_text()
