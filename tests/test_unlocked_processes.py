"""Batches left out and guessed inputs in loops and in processes: the reference to the bit; an end that comes early."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from nets import INPUTS, SIGNALS, make_stages, mlp, rows
from pipelines import Pipeline
from test_processes import job_of, reference_sha256, train

from stepahead.pipeline import Activation, Mark, MarkKind, UsageError, cut_model
from stepahead.workers import Lag, check_ledgers


@pytest.mark.parametrize("options", [{"chance": 0.5}, {"inputs": INPUTS}, {"inputs": INPUTS, "chance": 0.5}])
@pytest.mark.parametrize(("name", "stages"), [("synthetic", 2), ("synthetic", 4), ("locked", 3), ("critic", 3)])
def test_exact_processes_leave_out_and_guess_as_the_reference_does(
    name: str, stages: int, options: dict[str, Any], tmp_path: Path
) -> None:
    model, batches = mlp(), [*rows(20), *rows(1, size=5)]
    expected = reference_sha256(model, batches, stages, SIGNALS[name], 3, **options)
    job = job_of(model, batches, signal=SIGNALS[name], test=rows(2), evaluate_every=7, **options)
    run_dir = str(tmp_path / "run")
    summary = train(job, stages=stages, lag="exact", max_lag=3, run_dir=run_dir, ledger=True)
    assert summary["weights_sha256"] == expected
    assert summary["metrics"]["loss"] > 0
    guessed = [stage["inputs"] is not None for stage in summary["stages"]]
    assert guessed == [index > 0 and "inputs" in options for index in range(stages)]
    assert check_ledgers(Path(run_dir)) >= 8 * stages


def test_stages_on_guesses_of_their_inputs_stop_when_told(tmp_path: Path) -> None:
    """In free mode each is where it is: whoever is ahead is not answered any more."""
    job = job_of(mlp(), rows(50), signal=SIGNALS["synthetic"], inputs=INPUTS, test=rows(2), evaluate_every=20)
    summary = train(job, stages=4, run_dir=str(tmp_path / "run"))
    assert summary["steps"] == 50
    assert summary["metrics"]["loss"] > 0


@pytest.mark.parametrize("mode", ["free", "exact"])
@pytest.mark.parametrize("seed", range(25))
def test_an_end_that_comes_early_finds_everybody(mode: Any, seed: int) -> None:
    """Told to stop after 6 batches, stages may have drawn more: nobody waits for what will not come."""
    batches = rows(40)
    stages = make_stages(cut_model(mlp(), 4), batches[0], signal=SIGNALS["synthetic"], inputs=INPUTS)
    fed: list[Any] = [
        Activation(edge="data>0", step=step, tensors=(x,), label=y) for step, (x, y) in enumerate(batches[:6])
    ]
    tested = Activation(edge="data>0", step=6, tensors=(batches[0][0],), label=batches[0][1], training=False)
    marks = [Mark(edge="data>0", step=5, kind=kind) for kind in (MarkKind.SETTLE, MarkKind.EVALUATE, MarkKind.STOP)]
    messages = [*fed, marks[0], tested, *marks[1:]]
    draws = [Activation(edge="data>0", step=step, tensors=(x,), label=y) for step, (x, y) in enumerate(batches)]
    pipeline = Pipeline(stages, messages, Lag(mode, 4), draws=draws)
    pipeline.run(random.Random(seed).randrange)
    assert stages[0].step == 6
    assert all(6 <= stage.step <= 6 + 2 * 4 for stage in stages[1:])
    assert [step for step, _ in pipeline.loops[-1].progress.evaluations] == [6]


def test_what_has_no_truth_to_pass_on_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """It was refused in each worker, which ended without a word."""
    job, run = job_of(mlp(), rows(3), chance=0.5), tmp_path / "run"
    with pytest.raises(UsageError, match="stages that leave batches out have no truth to pass on; leave the truth off"):
        train(job, stages=2, truth="stash", run_dir=str(run))
    assert not run.exists()
