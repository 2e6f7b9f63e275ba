"""Faults, each planted at a (stage, step): who notices, what is said, what is left."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import signal
import time
from pathlib import Path

import pytest
from launcher import FAULTY, all_gone, faulty, fork, gone, launched, note, obey_permissions, run, session

from stepahead.launch.export import export_weights
from stepahead.launch.recording import replay
from stepahead.launch.start import fork as fork_worker


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_killed_stage_ends_the_run_and_is_named(tmp_path: Path, stage: int) -> None:
    folder = tmp_path / "run"
    with launched(faulty(folder, "kill", stage)) as command:
        text = command.output.read()
        code, _ = command.wait()
        ended = time.monotonic()
        assert session(command.pid) == []
    assert code == 3
    last = text.strip().splitlines()[-1]
    assert f"stage {stage} was killed by SIGKILL (by hand, or because memory ran out" in last
    assert last.endswith(f"log: {folder}/logs/{stage}/stderr.log")
    assert ended - note(folder)[0] < 2.0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exit_reason"] == "worker lost"
    assert [fault["worker"] for fault in summary["faults"]] == [str(stage)]
    assert summary["weights_sha256"] is None
    *_, (_, monitor) = replay(folder)
    assert [state.state == "lost" for state in monitor.state().stages] == [index == stage for index in range(3)]


def test_a_killed_stage_is_noticed_at_once(tmp_path: Path) -> None:
    """From the kill to the launcher's word, which comes after all others are gone."""
    with launched(faulty(tmp_path / "run", "kill", 1)) as command:
        command.read_until("was killed by SIGKILL")
        assert time.monotonic() - note(tmp_path / "run")[0] < 0.5


@pytest.mark.parametrize(("act", "said"), [("abort", "was killed by SIGABRT"), ("exit", "ended with exit code 7")])
def test_other_deaths_are_named_too(tmp_path: Path, act: str, said: str) -> None:
    code, text = run(faulty(tmp_path / "run", act, 1))
    assert code == 3
    assert f"stage 1 {said}" in text


def test_a_killed_data_process_is_named(tmp_path: Path) -> None:
    where = tmp_path / "run"
    options = ["--set", 'options.act="kill"', "--set", f'options.note="{where}.note"']
    code, text = run(["train", f"{FAULTY}:faulty_data", "--run-dir", str(where), *options])
    assert code == 3
    assert "the data process was killed by SIGKILL" in text


@pytest.mark.parametrize("act", ["kill the launcher", "kill the group"])
def test_workers_die_with_their_launcher(tmp_path: Path, act: str) -> None:
    folder = tmp_path / "run"
    with launched(faulty(folder, act, 1)) as command:
        assert command.wait()[0] == -signal.SIGKILL
        assert all_gone(command.others(), deadline=note(folder)[0] + 1.0)
        assert session(command.pid) == []  # so nobody holds the links' memory, which has no name to be found by
    assert list(Path("/dev/shm").glob("*stepahead*")) == []


def test_an_interruption_saves_the_weights(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, text = run(faulty(folder, "interrupt", 1))
    assert code == 130
    assert time.monotonic() - note(folder)[0] < 10.0
    assert "interrupted: the workers finish what is on its way and save their weights" in text
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exit_reason"] == "interrupted"
    assert summary["steps"] > 5
    assert summary["weights_sha256"]
    assert "after" in export_weights(folder, tmp_path / "out.safetensors")


def test_a_second_interruption_ends_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launched(faulty(folder, "interrupt and hang", 1)) as command:
        command.read_until("interrupted:")
        again = time.monotonic()
        while not gone(command.pid, 0.1):  # one that follows at once could be an echo of the first
            os.kill(command.pid, signal.SIGINT)
        code, text = command.wait()
        assert code == 130
        assert time.monotonic() - again < 2.0
        assert "no weights were saved: " in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_whole_group_end_the_run_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """As a closing terminal, `timeout` or a cluster's scheduler sends them, more than once."""
    folder = tmp_path / "run"

    def prepare() -> None:
        signal.signal(number, signal.SIG_DFL)  # nohup ignores it, and that is kept to

    with launched(faulty(folder, "none"), prepare) as command:
        command.read_until("step ")
        for _ in range(2):
            os.killpg(command.pid, number)
        code, text = command.wait()
    assert code == 130
    assert "weights: " in text
    assert json.loads((folder / "summary.json").read_text())["weights_sha256"]


@pytest.mark.slow
def test_an_interruption_saves_what_it_can_when_a_stage_hangs(tmp_path: Path) -> None:
    """The hanging stage is killed in the end: no snapshot, but an answer within ten seconds."""
    folder = tmp_path / "run"
    code, _ = run(faulty(folder, "interrupt and hang", 1))
    assert code == 130
    assert time.monotonic() - note(folder)[0] < 10.0
    assert (folder / "snapshots" / "partial" / "stage-0.safetensors").exists()


def test_what_a_worker_raises_is_shown_once_as_the_cause(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, text = run(faulty(folder, "raise", 1))
    assert code == 1
    assert text.count("Traceback (most recent call last)") == 1
    assert text.count("ValueError: the layer has had enough") == 2  # at the traceback's end, and in the last words
    assert "stage 1 failed after 5 steps: ValueError: the layer has had enough" in text
    assert text.strip().splitlines()[-1] == f"log: {folder}/logs/1/stderr.log"
    assert "Traceback" in (folder / "logs" / "1" / "stderr.log").read_text()


def test_what_stepahead_raises_is_one_sentence(tmp_path: Path) -> None:
    code, text = run(faulty(tmp_path / "run", "not finite", 2))
    assert code == 1
    assert "Traceback" not in text
    assert "stage 2 failed after 5 steps: NonFiniteError: stage 2, step 5 (6..8): its activation has 80 of 80" in text


def test_what_the_data_raises_is_the_cause(tmp_path: Path) -> None:
    options = ["--set", f'options.note="{tmp_path}/note"']
    code, text = run(["train", f"{FAULTY}:faulty_data", "--run-dir", str(tmp_path / "run"), *options])
    assert code == 1
    assert "the data process failed after 5 steps: ValueError: the data is bad" in text


def test_a_stopped_worker_is_told_from_a_busy_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launched(faulty(folder, "stop", 1, 5, "--steps", "1000")) as command:
        line = command.read_until("is stopped")
        happened, pid = note(folder)
        assert time.monotonic() - happened < 2.0
        assert re.search(rf"stage 1 is stopped \(by a signal, at about step \d\); kill -CONT {pid} lets it go on", line)
        os.kill(pid, signal.SIGCONT)
        command.read_until("stage 1 is no longer stopped")
        code, text = command.wait()
    assert code == 0
    assert "done after 1000 steps" in text


def test_no_memory_for_the_links_is_one_sentence(tmp_path: Path) -> None:
    def scarce() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    without = ["--set", "telemetry=false"]
    code, text = run(faulty(tmp_path / "run", "none", 0, 5, *without), prepare=scarce)
    assert code == 1
    assert "Traceback" not in text
    assert "LinkError: no memory for edge data>0: 8 slots of 4 KiB cannot be had (File too large)" in text
    code, text = run(faulty(tmp_path / "more", "none"), prepare=scarce)
    assert code == 2
    assert "Traceback" not in text
    assert "no memory for telemetry: 132 KiB cannot be had (File too large); --set telemetry=false does" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "faulty:job", "--run-dir", "{shut}/run"], "the run folder {shut}/run cannot be made: Permission"),
        (["train", "faulty:job", "--run-dir", "{shut}"], "the run folder {shut} cannot be made: Permission denied"),
        (["train", "{shut}/job.py"], "no permission for {shut}/job.py"),
        (["train", "faulty:job", "--config", "{shut}/c.toml"], "{shut}/c.toml cannot be read: Permission denied"),
        (["export", "{shut}/run", "out.safetensors"], "no permission for {shut}/run"),
    ],
)
def test_no_permission_is_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0)

    code, text = run([part.format(shut=shut) for part in arguments], prepare=obey_permissions)
    assert code == 2
    assert said.format(shut=shut) in text
    assert text.count("\n") == 1


def test_a_worker_does_not_end_what_its_parent_left() -> None:
    parent = os.getpid()

    class Left:
        """Like a gloo group, it cannot end in a process without its threads."""

        def __init__(self) -> None:
            self.itself = self  # so that only the collector ends it

        def __del__(self) -> None:
            if os.getpid() != parent:
                os._exit(1)

    gc.disable()
    try:
        Left()
        pid = fork_worker(lambda: min(gc.collect(), 0))
    finally:
        gc.enable()
    assert os.waitpid(pid, 0)[1] == 0


def test_a_worker_that_is_already_dead_is_gone() -> None:
    pid = fork()
    if pid == 0:
        os._exit(0)
    assert gone(pid, 5)
    os.waitpid(pid, 0)
