"""Real processes: the one-process reference to the bit, the same again, and under torchrun too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import job as faulty_job
from launcher import FAULTY, faulty, note, run
from nets import CLASSES, SIGNALS, TRUTHS, Batch, adam, cnn, images, mlp, rows
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from stepahead.launch import Job, Track
from stepahead.launch import train as train_with_baseline
from stepahead.launch.baseline import baseline_from
from stepahead.launch.report import write_report
from stepahead.pipeline import (
    Group,
    Recipe,
    Reference,
    SignalRecipe,
    StepReport,
    TrainingError,
    Truth,
    UsageError,
    WorkerLostError,
    accuracy,
    assemble,
    cut_model,
    locked,
)
from stepahead.workers import check_ledgers, newest_snapshot, read_snapshot, save_stage, weights_sha256

train = partial(train_with_baseline, baseline="none")


def job_of(model: nn.Module, batches: list[Batch], **more: Any) -> Job:
    settings: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "optimizer": adam, "classes": CLASSES, "epochs": 1}
    return Job(model=model, data=batches, **settings | more)


def reference_sha256(
    model: nn.Module,
    batches: list[Batch],
    stages: int,
    signal: SignalRecipe,
    lag: int,
    truth: Truth | None = None,
    **more: Any,
) -> str:
    groups = cut_model(deepcopy(model), stages)
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=signal, truth=truth or Truth(), optimizer=adam, **more)
    list(Reference(assemble(groups, batches[0], recipe), lag=lag).train(batches))
    return weights_sha256(named for group in groups for named in group.named_weights())


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", SIGNALS)
def test_exact_processes_are_the_reference_to_the_bit(name: str, stages: int, tmp_path: Path) -> None:
    model, batches = mlp(), [*rows(6), *rows(1, size=5)]
    expected = reference_sha256(model, batches, stages, SIGNALS[name], lag=3)
    run_dir = str(tmp_path / "run")
    job = job_of(model, batches, signal=SIGNALS[name])
    summary = train(job, stages=stages, lag="exact", max_lag=3, run_dir=run_dir, ledger=True)
    assert summary["weights_sha256"] == expected
    assert check_ledgers(Path(run_dir)) >= 8 * stages


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("name", [name for name in TRUTHS if "spread" not in name])
def test_exact_processes_use_the_truth_as_the_reference_does(name: str, stages: int, tmp_path: Path) -> None:
    model, batches, truth = mlp(), [*rows(15), *rows(1, size=5)], TRUTHS[name]
    expected = reference_sha256(model, batches, stages, SIGNALS["synthetic"], 3, truth)
    job = job_of(model, batches, **({} if truth.is_late else {"signal": SIGNALS["synthetic"]}))
    settings = {"truth": truth.use, "truth_every": truth.every, "truth_keep": truth.keep, "truth_relay": truth.relay}
    run_dir = tmp_path / "run"
    summary = train(job, stages=stages, lag="exact", run_dir=str(run_dir), ledger=True, **settings)
    assert summary["weights_sha256"] == expected
    assert check_ledgers(run_dir) >= 16 * stages
    assert (summary["truth"], summary["truth_every"]) == (truth.use, truth.period)
    assert [stage["lag"]["max"] for stage in summary["stages"][:-1]] == [
        3 + 2 * (stages - 2 - stage) for stage in range(stages - 1)
    ]


@pytest.mark.parametrize("lag", [2, 4])
def test_exact_processes_are_the_reference_with_buffers_and_dropout_too(lag: int, tmp_path: Path) -> None:
    layers = list(cnn().children())
    model = nn.Sequential(*layers[:-1], nn.Dropout(0.3), layers[-1])
    batches = [*images(6), *images(1, size=5)]
    groups = cut_model(deepcopy(model), 3)
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=SIGNALS["auto shape"], optimizer=adam)
    list(Reference(assemble(groups, batches[0], recipe), lag=lag).train(batches))
    expected = {name: value for group in groups for name, value in group.model_state().items()}
    run = tmp_path / "run"
    train(job_of(model, batches, signal=SIGNALS["auto shape"]), stages=3, lag="exact", max_lag=lag, run_dir=str(run))
    state = read_snapshot(newest_snapshot(run))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_the_same_run_twice_gives_the_same_weights(tmp_path: Path) -> None:
    options = ["--set", 'options.act="none"', "--steps", "30", "--lag", "exact", "--evaluate-every", "10", "--json"]
    runs = [run(["train", str(FAULTY), "--run-dir", str(tmp_path / name), *options]) for name in ("a", "b")]
    summaries = [json.loads(text.splitlines()[-1]) for _, text in runs]
    assert [code for code, _ in runs] == [0, 0]
    assert summaries[0]["weights_sha256"] == summaries[1]["weights_sha256"]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert summaries[0]["train_loss"] == summaries[1]["train_loss"]
    assert summaries[0] == json.loads((tmp_path / "a" / "summary.json").read_text())


def test_fresh_workers_give_the_same_weights_as_forked_ones(tmp_path: Path) -> None:
    options = ["--set", 'options.act="none"', "--steps", "12", "--lag", "exact", "--json"]
    digests: list[str] = []
    for method in ("fork", "spawn"):
        folder = tmp_path / method
        code, text = run(["train", str(FAULTY), "--run-dir", str(folder), "--start-method", method, *options])
        assert code == 0, text
        digests.append(json.loads(text.splitlines()[-1])["weights_sha256"])
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_fresh_workers_do_not_measure_the_cut_again(tmp_path: Path) -> None:
    options = ["--set", 'options.act="none"', "--steps", "3", "--cut", "cost", "--start-method", "spawn"]
    code, text = run(["train", str(FAULTY), "--run-dir", str(tmp_path / "run"), *options])
    assert code == 0, text
    state = read_snapshot(newest_snapshot(tmp_path / "run"))
    faulty_job().model.load_state_dict(state, strict=True)  # type: ignore[union-attr]


def test_what_is_not_a_number_is_null_in_the_summary(tmp_path: Path) -> None:
    def nothing(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.tensor(float("nan"))

    folder = tmp_path / "run"
    train(job_of(mlp(), rows(3), test=rows(1), metrics={"nothing": nothing}), run_dir=str(folder))
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["metrics"]["nothing"] is None


def test_a_loader_of_a_stream_is_data_too(tmp_path: Path) -> None:
    loader = DataLoader(Stream(), batch_size=4)
    assert train(job_of(mlp(), loader, epochs=2), run_dir=str(tmp_path / "run"))["steps"] == 6  # type: ignore[arg-type]


def test_the_run_outlives_its_reader(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stepahead.launch", "train", str(FAULTY), "--run-dir", str(tmp_path / "run")]
    command += ["--steps", "30", "--baseline", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=50) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 30


def test_torchrun_gives_the_same_run(tmp_path: Path) -> None:
    options = ["--set", 'options.act="none"', "--steps", "20", "--lag", "exact", "--evaluate-every", "10", "--json"]
    options += ["--baseline", "none"]
    _, text = run(["train", str(FAULTY), "--run-dir", str(tmp_path / "ours"), *options])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    arguments = ["-m", "stepahead.launch", "train", str(FAULTY), "--run-dir", str(tmp_path / "theirs"), *options]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = json.loads(text.splitlines()[-1])
    theirs = json.loads((tmp_path / "theirs" / "summary.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == theirs
    assert theirs.keys() == ours.keys()
    assert theirs["weights_sha256"] == ours["weights_sha256"]
    assert theirs["metrics"] == ours["metrics"]
    layout = [
        sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_dir())
        for name in ("ours", "theirs")
    ]
    assert layout[0] == layout[1]


@pytest.mark.slow
def test_an_interruption_of_torchrun_during_the_baseline_ends_all_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    arguments = ["-m", "stepahead.launch", "train", str(FAULTY), "--run-dir", str(folder)]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        next(line for line in run.stdout if "measuring the locked baseline" in line)
        begun = time.monotonic()
        run.send_signal(signal.SIGINT)
        text = run.stdout.read()
    assert time.monotonic() - begun < 20  # torchrun itself would wait for 30
    assert "interrupted while the baseline was measured; nothing has been trained" in text
    assert json.loads((folder / "summary.json").read_text())["exit_reason"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "code", "reason", "said"),
    [
        ("kill", 1, "worker lost", "stage 1 is gone after about"),
        ("raise", 1, "failed", "stage 1 failed after 30 steps: ValueError: the layer has had enough"),
        ("interrupt", 1, "interrupted", "interrupted after"),
        ("kill the launcher", -9, "worker lost", "is gone after about"),
    ],
)
def test_torchrun_leaves_a_summary_however_it_ends(tmp_path: Path, act: str, code: int, reason: str, said: str) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    arguments = ["-m", "stepahead.launch", *faulty(folder, act, 1, 30, "--baseline", "none")]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        text = run.stdout.read()  # to its end: when the last of all processes is gone
    assert time.monotonic() - note(folder)[0] < 20  # torchrun itself would wait for 30
    assert run.returncode == code
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exit_reason"] == reason
    assert said in text
    assert (summary["weights_sha256"] is not None) == (act == "interrupt")


def test_the_run_folder_has_what_it_should(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = mlp()
    test = rows(2)
    job = job_of(model, rows(10), name="mine", test=test, metrics={"accuracy": accuracy})
    summary = train(job, stages=3, run_dir=str(folder), evaluate_every=4)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.toml",
        "logs",
        "report.html",
        "snapshots",
        "summary.json",
        "telemetry.jsonl",
        "trace.json.gz",
    ]
    config = tomllib.loads((folder / "config.toml").read_text())
    assert (config["job"], config["stages"], config["epochs"], config["link"]) == ("mine", 3, 1, "shm")
    assert summary.keys() == {
        "job", "schedule", "signal", "truth", "truth_every", "lag_mode", "virtual", "steps", "samples",
        "wall_seconds", "samples_per_second", "train_loss", "metrics", "weights_sha256", "speedup", "baseline",
        "stages", "restarts", "faults", "versions", "exit_reason",
    }  # fmt: skip
    assert (summary["steps"], summary["samples"], summary["exit_reason"]) == (10, 80, "done")
    assert set(summary["metrics"]) == {"loss", "accuracy"}
    assert sum(stage["parameters"] for stage in summary["stages"]) == sum(w.numel() for w in model.parameters())
    for index, stage in enumerate(summary["stages"]):
        assert abs(stage["useful"] + stage["tax"] + sum(stage["idle"].values()) - 1) < 1e-9
        assert set(stage["idle"]) == {"wait_input", "wait_credit", "wait_gradient", "link", "other"}
        assert (stage["predictor"] is None) == (index == 2)
        assert (stage["lag"] is None) == (index == 2)
        assert stage["peak_activation_bytes"] > 0


def test_with_telemetry_off_nobody_says_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    summary = train_with_baseline(job_of(mlp(), rows(30)), stages=2, run_dir=str(folder), telemetry=False)
    assert [(stage["useful"], stage["tax"], stage["idle"]) for stage in summary["stages"]] == [(None, None, None)] * 2
    assert summary["baseline"]["samples_per_second"] > 0
    assert summary["baseline"]["useful"] == summary["baseline"]["idle"] == summary["baseline"]["spans"] == ()
    assert "idle mostly for" not in capsys.readouterr().out
    assert "Telemetry was off: where the time went is not known." in write_report(folder).read_text()
    assert baseline_from(str(folder), 2).useful == ()


def test_a_snapshot_is_loaded_by_the_users_own_module(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Sequential(nn.ReLU(), nn.Linear(8, CLASSES)))
    test = rows(2)
    job = job_of(model, rows(10), test=test, metrics={"accuracy": accuracy})
    summary = train(job, stages=2, run_dir=str(tmp_path / "run"))
    state = read_snapshot(newest_snapshot(tmp_path / "run"))
    mine = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Sequential(nn.ReLU(), nn.Linear(8, CLASSES)))
    mine.load_state_dict(state, strict=True)
    assert int(state["1.num_batches_tracked"]) == 10
    mine.eval()
    with torch.no_grad():
        loss = sum(nn.functional.cross_entropy(mine(x), y) for x, y in test) / 2
    assert float(loss) == pytest.approx(summary["metrics"]["loss"], rel=1e-5)


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    train(job_of(mlp(), rows(2)), run_dir=str(tmp_path / "run"))
    file = newest_snapshot(tmp_path / "run") / "stage-1.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0x40
    file.write_bytes(raw)
    with pytest.raises(UsageError, match=r"stage-1.safetensors is damaged: '\d.\w+' is not what was saved"):
        read_snapshot(newest_snapshot(tmp_path / "run"))
    file.write_bytes(raw[:50])
    with pytest.raises(UsageError, match=r"stage-1.safetensors cannot be read"):
        read_snapshot(newest_snapshot(tmp_path / "run"))


def test_weights_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    (tmp_path / "snapshots").touch()
    group = Group(["0"], [nn.Linear(2, 2)])
    with pytest.raises(TrainingError, match=r"the weights of stage 1 cannot be saved in .*/snapshots: .*Not a dir"):
        save_stage(tmp_path, group, 1)


def test_what_the_command_says_python_raises(tmp_path: Path) -> None:
    batches = rows(4)
    with pytest.raises(TrainingError, match="stage 1 failed after 0 steps: LabelError: stage 1, step 0: the loss"):
        train(job_of(mlp(), [(x, y + CLASSES) for x, y in batches], signal=locked), run_dir=str(tmp_path / "a"))
    with pytest.raises(UsageError, match=r"layer '0' \(Two\) returned a tuple"):
        train(job_of(nn.Sequential(Two(), nn.Linear(12, CLASSES)), batches), run_dir=str(tmp_path / "b"))
    with pytest.raises(UsageError, match="the data process failed after 0 steps: UsageError: the training data gave"):
        train(job_of(mlp(), []), run_dir=str(tmp_path / "c"))
    with pytest.raises(WorkerLostError, match="stage 0 ended with exit code 9"):
        train(job_of(nn.Sequential(Quit(), *mlp()), batches), run_dir=str(tmp_path / "d"))
    with pytest.raises(UsageError, match="a fresh process cannot find a job that is an object"):
        train(job_of(mlp(), batches), start_method="spawn", run_dir=str(tmp_path / "e"))


def test_the_same_folder_is_not_used_twice(tmp_path: Path) -> None:
    train(job_of(mlp(), rows(2)), run_dir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"run is there already and not empty; choose another --run-dir"):
        train(job_of(mlp(), rows(2)), run_dir=str(tmp_path / "run"))


def test_a_deep_run_folder_is_no_matter(tmp_path: Path) -> None:
    """A Unix socket's path may have 107 bytes."""
    deep = tmp_path / ("deep" * 30) / "run"
    assert train(job_of(mlp(), rows(2)), run_dir=str(deep))["steps"] == 2


def test_one_stage_is_a_run_too(tmp_path: Path) -> None:
    model, batches = mlp(), rows(6)
    expected = reference_sha256(model, batches, 1, locked, lag=1)
    assert train(job_of(model, batches), stages=1, run_dir=str(tmp_path / "run"))["weights_sha256"] == expected


def test_waiting_too_long_names_who_and_for_whom(tmp_path: Path) -> None:
    said = r"stage 0 did nothing for 0.3 s at step 2 \(wait_input\): the data process sent no batch; --timeout raises"
    with pytest.raises(TrainingError, match=said):
        train(job_of(mlp(), SlowData()), stages=1, timeout=0.3, run_dir=str(tmp_path / "run"))  # type: ignore[arg-type]


def test_a_slow_terminal_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that finish while the launcher is busy with its terminal have finished, and are not lost."""
    given = Track.__iter__

    def slowly(self: Track) -> Iterator[StepReport]:
        for report in given(self):
            threading.Event().wait(0.2)
            yield report

    monkeypatch.setattr(Track, "__iter__", slowly)
    for number in range(3):
        summary = train(job_of(mlp(), rows(150)), stages=3, run_dir=str(tmp_path / str(number)))
        assert summary["exit_reason"] == "done"


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    train(job_of(mlp(), rows(2)), run_dir=str(tmp_path / "first"))
    before = os.listdir("/proc/self/fd")
    train(job_of(mlp(), rows(2)), run_dir=str(tmp_path / "second"))
    assert len(os.listdir("/proc/self/fd")) == len(before)


class SlowData:
    """Two batches, and then nothing for long."""

    def __iter__(self) -> Iterator[Batch]:
        yield from rows(2)
        threading.Event().wait(30)


class Stream(IterableDataset[Batch]):
    """Twelve samples, one by one."""

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(12):
            yield torch.randn(12), torch.tensor(1)


class Two(nn.Module):
    def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return h, h


class Quit(nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        os._exit(9)
