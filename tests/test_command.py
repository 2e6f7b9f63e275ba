"""The command: what it prints and how it exits, without a run and with small ones."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import FAULTY, run
from safetensors.torch import load_file

from stepahead.launch import doctor
from stepahead.launch.cli import FLAGS, main
from stepahead.launch.config import Config


def outcome(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def test_every_flag_is_a_setting() -> None:
    assert {name.replace("-", "_") for name in FLAGS} <= set(Config.__dataclass_fields__)


def test_help_and_the_command_line_need_no_torch() -> None:
    code = (
        "import sys, stepahead.launch.cli as cli\n"
        "try: cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'zmq' not in sys.modules, 'imported too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    for name in FLAGS:
        assert f"--{name}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "digit"], "stepahead: there is no job 'digit'; did you mean 'digits'?"),
        (["train", str(FAULTY), "--set", "stagse=3"], "unknown setting 'stagse'; did you mean 'stages'?"),
        (["train", str(FAULTY), "--stages", "99"], "99"),
        (["train", str(FAULTY), "--max_lag", "0"], "max_lag is 0; it must be at least 1"),
        (["train", str(FAULTY), "--run-dir", "/dev/null/x"], "the run folder /dev/null/x cannot be made: Not a dir"),
        (["export", "/nowhere", "x.safetensors"], "there is no run folder /nowhere"),
        (["export", "/tmp", "x.safetensors"], "/tmp has no complete snapshot"),
    ],
)
def test_usage_errors_are_one_sentence_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(*arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""


def test_a_run_prints_plain_lines(tmp_path: Path) -> None:
    arguments = ["train", str(FAULTY), "--run-dir", str(tmp_path / "run"), "--steps", "20", "--evaluate-every", "10"]
    code, text = run(arguments)
    lines = text.strip().splitlines()
    assert code == 0
    assert lines[0] == f"{FAULTY}: 3 stages on cpu x3, decoupled, signal auto, truth off"
    assert lines[1] == f"run folder: {tmp_path}/run"
    (progress,) = (line for line in lines if line.startswith("step 20/20 loss "))
    assert " accuracy 0." in progress
    assert "stage   useful   tax   idle   cosine   lag   idle mostly for" in text
    assert lines[-2].startswith("done after 20 steps in ")
    assert ", accuracy 0." in lines[-2]
    assert lines[-2].endswith(" samples/s")
    assert lines[-1].startswith(f"weights: {tmp_path}/run/snapshots/20; stepahead export {tmp_path}/run out.")
    assert "\x1b" not in text

    assert outcome("export", str(tmp_path / "run"), str(tmp_path / "out.safetensors")) == 0
    assert "6.weight" in load_file(tmp_path / "out.safetensors")
    assert outcome("export", str(tmp_path / "run"), "/dev/null/out.safetensors") == 2


def test_lockstep_is_a_schedule(tmp_path: Path) -> None:
    where = ["--run-dir", str(tmp_path / "run")]
    code, text = run(["train", str(FAULTY), *where, "--steps", "5", "--schedule", "lockstep"])
    assert code == 0
    assert "locked (lockstep)" in text


def test_env_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("env") == 0
    printed = capsys.readouterr().out
    for name in ("stepahead", "torch", "python", "cores", "memory", "limit: open files", "GPUs"):
        assert f"\n{name} " in f"\n{printed}"


def test_the_doctor_finds_this_machine_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("doctor") == 0
    printed = capsys.readouterr().out
    for check in ("memory and limits", "cores", "links", "GPUs", "a run of two stages"):
        assert check in printed
    assert "failed" not in printed


def test_the_doctor_gives_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    finding = doctor.check_limits()
    assert finding.state == "warning"
    assert finding.advice == "a run with many stages needs more open files: ulimit -n 1024"
    monkeypatch.setattr(doctor, "_one_way", lambda size: 0.002)
    assert "is the machine busy, or throttled?" in doctor.check_links().advice
    monkeypatch.setattr(doctor, "weights_sha256", lambda weights: "other")
    assert doctor.check_run().found == "its weights are not those of one process"
