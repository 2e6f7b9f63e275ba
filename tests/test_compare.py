"""Schedules side by side: what follows from figures, what is said, what the command leaves."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import run
from nets import CLASSES, adam, mlp, rows
from rich.console import Console
from test_processes import job_of
from torch import Tensor, nn

from stepahead.launch import Config
from stepahead.launch.ceiling import ceiling
from stepahead.launch.compare import SCHEDULES, Settings, compare
from stepahead.launch.compare_table import table
from stepahead.launch.comparison import Comparison, Row
from stepahead.launch.plan import make_plan
from stepahead.launch.trial import Curve
from stepahead.launch.verdict import verdict
from stepahead.pipeline import LayerCost, TrainingError, UsageError, synthetic
from stepahead.workers.locked import is_available

ROW_KEYS = {
    "schedule",
    "microbatches",
    "cut",
    "samples_per_second",
    "spread",
    "ratio_to_lockstep",
    "ratio_to_best_locked",
    "useful",
    "tax",
    "peak_activation_bytes",
    "bytes_per_step",
    "loss_curve",
    "seconds_to_target",
    "contention",
    "error",
}
JOB = """
import torch
from functools import partial
from torch import nn
from torch.optim import SGD
from stepahead.launch import Job
def job(rows: int = 32) -> Job:
    data = [(torch.randn(rows, 8), torch.randint(3, (rows,))) for _ in range(4)]
    layers = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(8)]
    return Job(model=nn.Sequential(*layers, nn.Linear(8, 3)), data=data, loss=nn.CrossEntropyLoss(),
               optimizer=partial(SGD, lr=0.1), classes=3)
"""


def falling(rate: float, per_sample: float = 0.001) -> Curve:
    """Return a loss of 3 that falls with each sample, at so many samples a second."""
    return [(at / 10, round(at * rate / 10), 3.0 - per_sample * at * rate / 10) for at in range(1, 191)]


def row(schedule: str, rate: float, useful: float = 0.5, tax: float = 0.0, **more: Any) -> Row:
    shares: dict[str, Any] = {"useful": [useful] * 2, "tax": [tax, 0.0], "idle": [{"other": 1 - useful - tax}] * 2}
    settings: dict[str, Any] = {**shares, "curves": [falling(rate)], **more}
    return Row(schedule=schedule, rates=[rate * 0.9, rate, rate * 1.2], **settings)


def found(*more: Row, **settings: Any) -> Comparison:
    measured = [
        row("single", 90.0, 1.0),
        row("ceiling", 220.0, curves=[], useful=0.0),
        row("lockstep", 100.0),
        row("1f1b", 150.0, 0.7, microbatches=4),
    ]
    return Comparison(job="mine", stages=2, virtual=False, rows=[*measured, *more], **settings)


def test_ratios_are_of_rounds_and_the_best_locked_is_the_fastest() -> None:
    made = found(row("decoupled", 200.0, 0.8, 0.16))
    decoupled, best = made.row("decoupled"), made.best_locked
    assert decoupled is not None
    assert best is not None
    assert best.name == "1f1b M=4"
    assert made.ratio(decoupled, best) == pytest.approx(200 / 150)
    assert decoupled.rate == 200
    assert decoupled.spread == pytest.approx((190.0, 220.0))
    assert made.predictor_tax == pytest.approx(0.2)  # the stage that pays most; the last one has no predictor
    assert made.bubble == pytest.approx(0.3)
    assert made.break_even == pytest.approx(200 * 1.2 / 150 - 1)
    assert made.row("stash") is None


def test_the_target_is_the_lowest_loss_to_which_all_came() -> None:
    made = found(row("decoupled", 200.0))
    assert made.target == pytest.approx(3.0 - 0.001 * 19 * 100)  # lockstep's; single and ceiling do not race
    assert made.first is not None
    assert made.first.schedule == "decoupled"
    assert found(target_loss=0.5).first is not None
    assert found(target_loss=-9.0).first is None


def test_there_is_no_target_where_nothing_was_learnt() -> None:
    stays = [[(0.1, 24, 3.0), (0.2, 48, 3.1)]]
    made = found(row("decoupled", 200.0, curves=stays))
    assert made.target is None
    assert "the loss did not fall in all of them" in verdict(made)[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row("decoupled", 200.0, 0.8, 0.1)],
            ["decoupled comes to a loss of", "then 1f1b M=4", "that pays", "0.91 of the"],
        ),
        (
            [row("decoupled", 155.0, 0.5, 0.4)],
            ["decoupled comes", "has a bubble of 30%: that pays (break-even at 86%)"],
        ),
        (
            [row("decoupled", 120.0, 0.8, 0.2)],
            ["1f1b M=4 comes to", "that does not pay", "a cheaper predictor"],
        ),
        (
            [row("decoupled", 200.0, curves=[falling(200.0, 0.0003)])],
            ["1f1b M=4 comes", "decoupled is faster, and needs", "better guesses"],
        ),
        ([row("stash", 210.0, 0.9)], ["stash comes to", "its gradients are true, and late", "less memory"]),
        ([], ["1f1b M=4 comes to", "under 1f1b M=4 stages are useful", "slower links, more stages"]),
    ],
)  # fmt: skip
def test_the_verdict_says_who_is_first_and_why(rows: list[Row], said: list[str]) -> None:
    text = "\n".join(verdict(found(*rows)))
    for words in said:
        assert words in text


def test_the_verdict_has_reservations() -> None:
    crowded = found(row("decoupled", 200.0, contention=0.7))
    assert "other work had the cores for a tenth of the time or more (decoupled)" in "\n".join(verdict(crowded))
    assert verdict(Comparison(job="x", stages=2, virtual=False, rows=[Row(schedule="zbv", error="no")])) == [
        "no schedule could be measured"
    ]
    alone = found(row("single", 500.0))
    alone.rows = alone.rows[1:]
    assert "one process alone makes more samples a second" in "\n".join(verdict(alone))


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_the_table_fits(width: int) -> None:
    more = [row("interleaved-1f1b", 12345.0, microbatches=8, peak_activation_bytes=[10**9] * 2, bytes_per_step=1e7)]
    more += [row("decoupled", 23456.0, 0.8, 0.2), Row(schedule="zbv", error="cannot")]
    console = Console(width=width, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as captured:
        console.print(table(found(*more), width))
    text = captured.get()
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    assert "interleaved-1f1b M=8" in text


@pytest.mark.skipif(not is_available(), reason="torch's schedules need 2.13")
def test_a_whole_comparison(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(JOB)
    folder = tmp_path / "compare"
    arguments = ["compare", str(file), "--stages", "2", "--rounds", "1", "--seconds", "1", "--microbatches", "2,3"]
    code, text = run([*arguments, "--run-dir", str(folder), "--json"])
    assert code == 0, text
    made = json.loads(text.splitlines()[-1])
    assert made == json.loads((folder / "compare.json").read_text())
    assert [each["schedule"] for each in made["rows"]] == list(SCHEDULES)
    for each in made["rows"]:
        assert each.keys() >= ROW_KEYS
        assert each["error"] is None, each
        assert each["samples_per_second"] > 0
        if each["schedule"] in ("1f1b", "zbv", "decoupled", "stash"):
            assert each["bytes_per_step"] >= 2 * 32 * 8 * 4  # an activation down, a gradient up
            assert len(each["peak_activation_bytes"]) == 2
            assert each["loss_curve"]
        if each["microbatches"]:
            assert each["microbatches"] == 2  # 32 rows do not divide into 3
    assert made["verdict"]
    page = (folder / "report.html").read_text()
    assert "interleaved-zb" in page
    assert sorted(path.name for path in folder.iterdir()) == ["compare.json", "config.toml", "report.html"]


def test_rows_that_cannot_be_are_one_sentence_and_the_others_come(tmp_path: Path) -> None:
    cheap = synthetic("linear", classes=CLASSES, optimizer=adam)
    job = job_of(mlp(depth=1), rows(6, size=10), signal=cheap)  # three layers: no four groups
    console = Console(width=200, record=True, file=StringIO())
    schedules = ("lockstep", "gpipe", "zvb", "zbv", "decoupled")
    settings = Settings(schedules=schedules, microbatches=(3,), rounds=1, seconds=0.5)
    code = compare(Config(stages=2, device="cpu", run_dir=str(tmp_path / "run")), job, settings, console)
    text = console.export_text()
    assert code == 0
    rows_of = {each["schedule"]: each for each in json.loads((tmp_path / "run" / "compare.json").read_text())["rows"]}
    assert rows_of["lockstep"]["error"] is rows_of["decoupled"]["error"] is None
    refused = "a batch of 10 samples does not divide into 3 micro-batches; give another --microbatches"
    assert rows_of["gpipe"]["error"] == refused
    assert f"gpipe: {refused}" in " ".join(text.split())
    assert rows_of["zbv"]["samples_per_second"] is rows_of["zvb"]["samples_per_second"] is None
    assert rows_of["zvb"]["error"] == "there is no schedule 'zvb'; did you mean 'zbv'?"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--schedules", "zvb"], "there is no schedule 'zvb'; did you mean 'zbv'"),
        (["--stages", "1"], "compare needs a pipeline; give at least 2 stages"),
        (["--microbatches", "many"], "microbatches is 'many'; say auto, a number, or several: 2,4"),
        (["--microbatches", "0"], "microbatches must be at least 1"),
        (["--target-loss", "nan"], "target_loss is nan; it must be a number"),
        (["--schedules", "1f1b, 1f1b"], "schedules names one twice"),
        (["--truth", "stash"], "compare has rows of their own for that"),
        (["--rounds", "0"], "rounds is 0; it must be at least 1"),
        (["--seconds", "-1"], "seconds is -1.0; it must be from 0.5 to 1,000,000"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    code, text = run(["compare", "digits", "--run-dir", str(tmp_path / "run"), *arguments])
    assert code == 2
    assert said in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


def test_data_that_gives_nothing_is_one_sentence() -> None:
    def data(epoch: int) -> list[Any]:
        raise KeyError("no such file")

    with pytest.raises(UsageError, match="the data gives no first batch: KeyError: 'no such file'"):
        compare(Config(stages=2, device="cpu"), job_of(mlp(), data), Settings(), Console(quiet=True))  # type: ignore[arg-type]


def test_each_schedule_is_cut_by_what_its_own_stages_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every truth the first stage does its batches twice, so it has fewer layers than under the lock."""
    equal = LayerCost(name="", forward=1.0, backward=2.0, optimizer=0.0, signal=1.0, output_bytes=0)
    monkeypatch.setattr("stepahead.launch.compare.costs_of", lambda config, job, layers: [equal] * len(layers))
    job, run = job_of(mlp(depth=4), rows(6), classes=CLASSES), tmp_path / "run"
    settings = Settings(schedules=("ceiling", "lockstep", "stash", "decoupled"), rounds=1, seconds=0.5)
    config = Config(stages=2, device="cpu", cut="cost", truth="true-up", truth_every=1, run_dir=str(run))
    assert compare(config, job, settings, Console(quiet=True)) == 0
    made = json.loads((run / "compare.json").read_text())
    assert [each["cut"] for each in made["rows"]] == [[4, 5], [4, 5], [4, 5], [3, 6]]  # of nine layers, 19 beside 18
    assert made["notes"][-1].startswith("layers of each group, cut by cost: ceiling ")


def test_virtual_stages_that_are_late_are_noted(tmp_path: Path) -> None:
    settings = Settings(schedules=("ceiling", "lockstep"), rounds=1, seconds=0.5)
    for stage_ms, late in ((100.0, False), (0.2, True)):
        config = Config(stages=2, device="virtual", stage_ms=stage_ms, run_dir=str(tmp_path / f"{late}"))
        compare(config, job_of(mlp(), rows(6)), settings, Console(quiet=True))
        notes = json.loads((tmp_path / f"{late}" / "compare.json").read_text())["notes"]
        assert any("too slow for these virtual stages" in note for note in notes) == late


def test_data_that_can_be_gone_through_once_is_refused() -> None:
    job = job_of(mlp(), rows(3))
    with pytest.raises(UsageError, match="give data that can be: a list, a loader"):
        compare(Config(stages=2, device="cpu"), job_of(mlp(), iter(job.data)), Settings(), Console(quiet=True))  # type: ignore[arg-type]


def test_a_ceiling_with_a_stage_that_fails_is_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            if torch.is_grad_enabled():  # not while shapes are looked at
                raise ValueError("no")
            return h

    job = job_of(nn.Sequential(nn.Linear(12, 12), Broken(), nn.Linear(12, CLASSES)), rows(3))
    for stage in (0, 1):
        plan = make_plan(Config(stages=2, device="cpu", cut="2" if stage == 0 else "1", truth="off"), job)
        with pytest.raises(TrainingError, match=f"the ceiling: stage {stage} failed"):
            ceiling(plan, 0.2)


def test_the_ceiling_of_virtual_stages_is_the_slowest_one() -> None:
    config = Config(stages=2, device="virtual", stage_ms=20.0, slow_stage="1:2", truth="off")
    plan = make_plan(config, job_of(mlp(), rows(3, size=8)))
    assert ceiling(plan, 0.5) == pytest.approx(8 / 0.040, rel=0.1)
