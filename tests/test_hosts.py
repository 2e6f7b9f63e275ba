"""Runs on two hosts: the reference to the bit, and who is gone is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import can_make_hosts, two_hosts
from launcher import FAULTY, faulty, note, run

from stepahead.launch.hosts import Host
from stepahead.launch.uplink import Uplink
from stepahead.pipeline import FrameError
from stepahead.workers import Carrier, Telemetry, check_ledgers, pack

on_hosts = pytest.mark.skipif(not can_make_hosts(), reason="needs network namespaces, so root")
QUIET = ["--baseline", "none", "--view", "lines"]


def ended(launched: list[subprocess.Popen[str]], seconds: float = 50.0) -> tuple[list[int], str]:
    """Wait for both hosts, and return their exit codes and what the first one printed."""
    text, _ = launched[0].communicate(timeout=seconds)
    return [each.wait(timeout=seconds) for each in launched], text


@on_hosts
@pytest.mark.parametrize("link", ["dist", pytest.param("zmq", marks=pytest.mark.slow)])
def test_two_hosts_give_the_same_run(link: str, tmp_path: Path) -> None:
    options = ["--set", 'options.act="none"', "--steps", "20", "--lag", "exact", "--evaluate-every", "10", *QUIET]
    _, text = run(["train", str(FAULTY), "--stages", "2", "--run-dir", str(tmp_path / "one"), "--json", *options])
    one = json.loads(text.splitlines()[-1])
    with ExitStack() as kept, two_hosts(tmp_path) as hosts:
        codes, text = ended(
            hosts.torchrun(
                kept, ["train", str(FAULTY), "--run-dir", "run", "--link", link, *options, "--set", "ledger=true"]
            )
        )
        assert codes == [0, 0], text
    folder = tmp_path / "host 0" / "run"
    two = json.loads((folder / "summary.json").read_text())
    assert (two["weights_sha256"], two["metrics"]) == (one["weights_sha256"], one["metrics"])
    assert check_ledgers(folder) >= 3 * 20
    assert not (tmp_path / "host 1" / "run").exists()  # what its workers left is on the first host


@on_hosts
@pytest.mark.slow
def test_a_secret_encrypts_what_goes_between_hosts(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(32))
    options = ["--set", 'options.act="none"', "--steps", "20", "--set", f"link_secret={secret}", *QUIET]
    with ExitStack() as kept, two_hosts(tmp_path) as hosts:
        codes, text = ended(hosts.torchrun(kept, ["train", str(FAULTY), "--run-dir", "run", *options]))
        assert codes == [0, 0], text
    assert "encrypted" in text


@on_hosts
@pytest.mark.slow
@pytest.mark.parametrize("link", ["dist", "zmq"])
def test_a_cut_cable_is_named_within_two_seconds(link: str, tmp_path: Path) -> None:
    options = ["--set", 'options.act="none"', "--link", link, *QUIET]
    with ExitStack() as kept, two_hosts(tmp_path) as hosts:
        launched = hosts.torchrun(kept, ["train", str(FAULTY), "--run-dir", "run", *options])
        assert launched[0].stdout is not None
        next(line for line in launched[0].stdout if line.startswith("step "))
        hosts.cut()
        begun = time.monotonic()
        line = next(line for line in launched[0].stdout if "10.77.0.2 is gone, or the way to it is cut" in line)
        assert time.monotonic() - begun < 2.0, line
        next(line for line in launched[0].stdout if line.startswith("stepahead: stage 1 is gone"))
    assert json.loads((tmp_path / "host 0" / "run" / "summary.json").read_text())["exit_reason"] == "worker lost"


@on_hosts
@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "reason", "said"),
    [("kill", "worker lost", "stage 1 is gone"), ("raise", "failed", "ValueError: the layer has had enough")],
)
def test_what_happens_on_the_other_host_is_told(act: str, reason: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "host 0" / "run"
    with ExitStack() as kept, two_hosts(tmp_path) as hosts:
        launched = hosts.torchrun(kept, faulty(tmp_path / "note", act, 2, 30, "--run-dir", "run", *QUIET))
        codes, text = ended(launched)
        assert time.monotonic() - note(tmp_path / "note")[0] < 20
    assert 0 not in codes
    assert said in text
    summary: Any = json.loads((folder / "summary.json").read_text())
    assert summary["exit_reason"] == reason
    assert [fault["worker"] for fault in summary["faults"]] == ["1"]


@on_hosts
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "loads", "said"),
    [
        (
            ["--set", "link_secret=secret"],
            True,
            "link_secret secret is another one on host 10.77.0.2 than on the first",
        ),
        (["--link", "dist"], False, "job.py does not import: line 1: ValueError: not here"),
    ],
)
def test_a_host_that_cannot_take_part_says_why_on_the_first(
    options: list[str], loads: bool, said: str, tmp_path: Path
) -> None:
    works = f"import sys; sys.path.insert(0, {str(FAULTY.parent)!r}); from faulty import job"
    for node in range(2):
        folder = tmp_path / f"host {node}"
        folder.mkdir()
        (folder / "secret").write_bytes(os.urandom(32))
        (folder / "job.py").write_text(works if loads or node == 0 else "raise ValueError('not here')")
    with ExitStack() as kept, two_hosts(tmp_path) as hosts:
        begun = time.monotonic()
        launched = hosts.torchrun(kept, ["train", "job.py", "--run-dir", "run", *options, *QUIET])
        codes, text = ended(launched)
        assert time.monotonic() - begun < 30
    assert 0 not in codes
    assert f"host 10.77.0.2 cannot take part: {said}" in text
    assert "stepahead: stage 1 failed after 0 steps: UsageError" in text
    assert json.loads((tmp_path / "host 0" / "run" / "summary.json").read_text())["exit_reason"] == "failed"


@on_hosts
@pytest.mark.slow
def test_a_stage_that_is_stopped_on_the_other_host_is_told_from_a_dead_one(tmp_path: Path) -> None:
    options = ["--set", 'options.act="none"', *QUIET]
    with ExitStack() as kept, two_hosts(tmp_path) as hosts:
        launched = hosts.torchrun(kept, ["train", str(FAULTY), "--run-dir", "run", *options])
        assert launched[0].stdout is not None
        next(line for line in launched[0].stdout if line.startswith("step "))
        (rank,) = ranks_of(launched[1].pid)
        os.kill(rank, signal.SIGSTOP)
        line = next(line for line in launched[0].stdout if line.startswith("stage 1 is stopped (by a signal"))
        assert f"kill -CONT {rank} on its host lets it go on" in line
        os.kill(rank, signal.SIGCONT)
        next(line for line in launched[0].stdout if line.startswith("stage 1 is no longer stopped"))


def ranks_of(torchrun: int) -> list[int]:
    """Return torchrun's own children that train: not what those have started in turn."""
    tasks = Path(f"/proc/{torchrun}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


class FakeCarrier(Carrier):
    """Brings what a test says."""

    def __init__(self, *parcels: Any) -> None:
        self.parcels = list(parcels)
        self.sent: list[Any] = []

    def fileno(self) -> int:
        return 0

    @property
    def gone(self) -> bool:
        return False

    def send(self, head: bytes, values: Any = ()) -> None:
        self.sent.append(head)

    def take(self) -> Any:
        taken, self.parcels = self.parcels, []
        return taken

    def close(self) -> None:
        pass


def test_a_file_from_another_host_stays_in_the_run_folder(tmp_path: Path) -> None:
    carrier = FakeCarrier((pack({"kind": "file", "path": "../other"}), [torch.zeros(1, dtype=torch.uint8)]))
    with pytest.raises(FrameError, match=r"sent a file '../other', which is not one of the run's"):
        list(Host("there", ["1"], Uplink(carrier), tmp_path).messages())


@pytest.mark.parametrize("head", [b"", b"\xc1", b"\x93\x01", pack([1]), pack({"kind": 3})])
def test_what_is_no_word_is_refused(head: bytes) -> None:
    with pytest.raises(FrameError):
        Uplink(FakeCarrier((head, []))).take()


def test_telemetry_is_the_same_on_the_other_side() -> None:
    there, here = Telemetry(4), Telemetry(4)
    there["steps"], there["loss"], there["begun"] = 7, 0.5, 1000
    sent = 0
    for number in range(11):
        there.note(number * 10, number * 10 + 5, number, 1)
        if number in (2, 10):
            figures, events, sent = there.copy(sent, ahead=3)
            here.paste(figures, events)
    assert sent == 11
    assert (here["steps"], here["loss"], here["begun"], here["ended"]) == (7, 0.5, 1003, 0)
    found, written, lost = here.read_events(3)
    assert [(event.begin, event.step) for event in found] == [(number * 10 + 3, number) for number in range(8, 11)]
    assert (written, lost) == (11, 5)
