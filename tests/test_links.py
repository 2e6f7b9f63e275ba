"""Whole runs over each kind of link: the reference to the bit, faults named, nothing left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from launcher import faulty, launched, note, run, session
from nets import SIGNALS, TRUTHS, mlp, rows
from test_processes import job_of, reference_sha256, train

from stepahead.workers import Wiring, check_ledgers

BETWEEN = ["zmq", "dist"]
"""The links that are not tested everywhere."""


@pytest.mark.parametrize("link", BETWEEN)
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", ["synthetic", "locked"])
def test_exact_processes_are_the_reference_to_the_bit(name: str, stages: int, link: str, tmp_path: Path) -> None:
    model, batches = mlp(), [*rows(6), *rows(1, size=5)]
    expected = reference_sha256(model, batches, stages, SIGNALS[name], lag=3)
    job, run_dir = job_of(model, batches, signal=SIGNALS[name]), tmp_path / "run"
    summary = train(job, stages=stages, lag="exact", max_lag=3, run_dir=str(run_dir), ledger=True, link=link)
    assert summary["weights_sha256"] == expected
    assert check_ledgers(run_dir) >= 8 * stages
    assert not (run_dir / "links").exists()


@pytest.mark.parametrize("link", BETWEEN)
def test_the_truth_comes_back_over_each_link(link: str, tmp_path: Path) -> None:
    model, batches, truth = mlp(), rows(12), TRUTHS["true-up"]
    expected = reference_sha256(model, batches, 3, SIGNALS["synthetic"], 3, truth)
    settings = {"truth": truth.use, "truth_every": truth.every, "truth_keep": truth.keep, "truth_relay": truth.relay}
    job = job_of(model, batches, signal=SIGNALS["synthetic"])
    summary = train(job, stages=3, lag="exact", run_dir=str(tmp_path / "run"), link=link, **settings)
    assert summary["weights_sha256"] == expected


@pytest.mark.parametrize("link", BETWEEN)
def test_a_deep_run_folder_and_fresh_workers(link: str, tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20)
    options = ["--steps", "12", "--start-method", "spawn", "--link", link, "--json"]
    code, text = run(faulty(folder, "none", 0, 5, *options))
    assert code == 0, text
    assert json.loads(text.splitlines()[-1])["steps"] == 12


@pytest.mark.parametrize("link", BETWEEN)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_killed_stage_is_named(stage: int, link: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launched(faulty(folder, "kill", stage, 5, "--link", link)) as command:
        text = command.output.read()
        assert command.wait()[0] == 3
        assert session(command.pid) == []
    assert f"stage {stage} was killed by SIGKILL" in text
    assert [fault["worker"] for fault in json.loads((folder / "summary.json").read_text())["faults"]] == [str(stage)]
    assert not (folder / "links").exists()


@pytest.mark.parametrize("link", BETWEEN)
def test_a_stage_that_was_stopped_goes_on(link: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launched(faulty(folder, "stop", 1, 5, "--link", link, "--steps", "20")) as command:
        assert "stage 1 is stopped" in command.read_until("is stopped")
        os.kill(note(folder)[1], signal.SIGCONT)
        code, text = command.wait()
    assert code == 0, text


@pytest.mark.parametrize("link", BETWEEN)
def test_an_interruption_saves_the_weights(link: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launched(faulty(folder, "none", 0, 5, "--link", link)) as command:
        command.read_until("step ")
        os.kill(command.pid, signal.SIGINT)
        assert command.wait()[0] == 130
    assert json.loads((folder / "summary.json").read_text())["weights_sha256"]


def test_what_joins_whom() -> None:
    one_gpu_each = Wiring(devices=("cuda:0", "cuda:1", "cpu"), hosts=(0, 0, 0))
    assert [one_gpu_each.kind(*pair) for pair in (("data", "0"), ("0", "1"), ("1", "2"))] == ["shm", "nccl", "shm"]
    shared_gpu = Wiring(devices=("cuda:0", "cuda:0"), hosts=(0, 0), choice="dist")
    assert shared_gpu.kind("0", "1") == "gloo"
    two_hosts = Wiring(devices=("cpu",) * 4, hosts=(0, 0, 1, 1))
    assert [two_hosts.kind(str(stage), str(stage + 1)) for stage in range(3)] == ["shm", "gloo", "shm"]
    gpus_of_two_hosts = Wiring(devices=("cuda:0", "cuda:0"), hosts=(0, 1))
    assert gpus_of_two_hosts.kind("0", "1") == "nccl"
    assert Wiring(devices=("cpu", "cpu"), hosts=(0, 1), choice="zmq").kind("data", "0") == "zmq"
