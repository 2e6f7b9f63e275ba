"""The report: one page without a network, whose numbers are those of the summary; and the baseline that it shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from launcher import FAULTY, faulty, launched, run

from stepahead.launch.charts import Series, draw_bars, draw_lines, draw_timeline
from stepahead.launch.recording import RecordingError
from stepahead.launch.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with a baseline, evaluations and predictors."""
    folder = tmp_path_factory.mktemp("report") / "run"
    arguments = ["train", str(FAULTY), "--run-dir", str(folder), "--steps", "300", "--evaluate-every", "100"]
    code, text = run([*arguments, "--baseline", "lockstep"])
    assert code == 0, text
    return folder


class Figures(HTMLParser):
    """Collects what is in the elements that name a key of the summary."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._key: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._key = dict(attrs).get("data-key")

    def handle_data(self, data: str) -> None:
        if self._key is not None:
            self.found[self._key], self._key = data, None


def figures(page: str) -> dict[str, str]:
    parser = Figures()
    parser.feed(page)
    return parser.found


def value_of(summary: Any, key: str) -> Any:
    """Return what a key such as stages.0.useful leads to."""
    for part in key.split("."):
        summary = summary[int(part)] if isinstance(summary, list) else summary[part]
    return summary


def check_figures(found: dict[str, str], summary: dict[str, Any]) -> None:
    assert {"speedup", "samples_per_second", "train_loss", "weights_sha256"} <= found.keys()
    assert {"stages.0.useful", "stages.2.idle.wait_input", "baseline.useful.1"} <= found.keys()
    assert "stages.1.predictor.cosine" in found
    for key, text in found.items():
        value = value_of(summary, key)
        if isinstance(value, str):
            assert text == value
            continue
        number = float(text.rstrip("x%").replace(",", "")) / (100 if text.endswith("%") else 1)
        digits = len(text.rstrip("x%").partition(".")[2]) + (2 if text.endswith("%") else 0)
        assert number == pytest.approx(value, abs=0.51 * 10**-digits), key


def test_its_numbers_are_those_of_the_summary(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    check_figures(figures(page), summary)
    assert len(page) < 300_000
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert "<script" not in page
    for title in ("Where each stage", "Steps ", "Loss and metrics", "Predictors", "Lag", "Machine and settings"):
        assert f"<h2>{title}" in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_it_without_a_complaint(folder: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*command, (folder / "report.html").as_uri()], capture_output=True, text=True, timeout=50, check=True
    )
    assert "CONSOLE" not in done.stderr
    assert figures(done.stdout) == figures((folder / "report.html").read_text())


def test_it_can_be_made_again(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    (again / "report.html").unlink()
    code, text = run(["report", str(again)])
    assert (code, text.strip()) == (0, str(again / "report.html"))
    assert (again / "report.html").read_text() == (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lines: lines[1:], "line 1, is not of a recording (KeyError: 'facts')"),
        (lambda lines: [*lines[:3], "null", *lines[4:]], "line 4, is not of a recording (TypeError"),
        (lambda lines: [*lines[:3], "[]", *lines[4:]], "line 4, is not of a recording (AttributeError"),
        (
            lambda lines: [lines[0], lines[1].replace('"steps": ', '"steps": "x", "y": '), *lines[2:]],
            "is not of a recording (TypeError",
        ),
        (lambda lines: [*lines[:3], "no json", *lines[4:]], "line 4, is not JSON"),
        (lambda lines: [*lines, "\udcff"], "no telemetry.jsonl that can be read (UnicodeDecodeError)"),
    ],
)
def test_a_damaged_recording_is_one_sentence(
    spoil: Callable[[list[str]], list[str]], said: str, folder: Path, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    lines = (folder / "telemetry.jsonl").read_text().splitlines()
    (again / "telemetry.jsonl").write_text("\n".join(spoil(lines)), errors="surrogateescape")
    for what in ("report", "playback"):
        code, text = run([what, str(again)])
        assert (code, len(text.strip().splitlines())) == (2, 1), text
        assert said in text


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("summary.json", '"exit_reason": "done"', '"exit_reason": 0'),
        ("summary.json", '"counts": [', '"counts": [null, '),
        ("telemetry.jsonl", '"machine": "', '"job": true, "machine": "'),
        ("telemetry.jsonl", '"reason": "done"', '"reason": true'),
    ],
)
def test_a_value_that_cannot_be_shown_is_one_sentence(
    file: str, old: str, new: str, folder: Path, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    text = (again / file).read_text()
    assert old in text
    (again / file).write_text(text.replace(old, new))
    code, text = run(["report" if file == "summary.json" else "playback", str(again)])
    assert (code, len(text.strip().splitlines())) == (2, 1), text
    assert "something that cannot be shown" in text


def test_a_killed_run_shows_what_was_seen_last(tmp_path: Path) -> None:
    code, _ = run(faulty(tmp_path / "run", "kill", 1, 400, "--steps", "1000", "--baseline", "none"))
    assert code == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('<div class="bar"><i class="useful"') == 3
    assert "stage 1, after" in page


def test_a_failed_run_says_what_failed(folder: Path, tmp_path: Path) -> None:
    code, _ = run(faulty(tmp_path / "run", "raise", 1, 5, "--baseline", "none"))
    assert code == 1
    (fault,) = json.loads((tmp_path / "run" / "summary.json").read_text())["faults"]
    assert (fault["worker"], fault["steps"]) == ("1", 5)
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"stage 1, after 5 steps: {fault['what']}" in unescape(page)


def test_what_is_missing_is_left_out(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    again.mkdir()
    summary = json.loads((folder / "summary.json").read_text())
    summary["stages"][1] = {"device": "cpu"}
    summary["baseline"] = summary["speedup"] = None
    (again / "summary.json").write_text(json.dumps(summary))
    (again / "trace.json.gz").write_text("nonsense")
    page = write_report(again).read_text()
    assert "did not come to an end" in page
    assert "Loss and metrics" not in page
    whole = (folder / "telemetry.jsonl").read_text()
    (again / "telemetry.jsonl").write_text(whole + '{"time": 1, "samp')
    assert "Loss and metrics" in write_report(again).read_text()
    with pytest.raises(RecordingError, match=r"has no summary\.json: its launcher did not come to an end"):
        write_report(tmp_path)


def test_the_baseline_is_measured_in_the_run(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    baseline = summary["baseline"]
    assert (baseline["schedule"], baseline["source"], len(baseline["useful"])) == ("lockstep", "measured", 3)
    assert summary["speedup"] == pytest.approx(summary["samples_per_second"] / baseline["samples_per_second"])
    assert sum(baseline["useful"]) < 1.2  # one stage at a time
    assert not (folder / "baseline").exists()


@pytest.mark.slow
def test_fresh_workers_measure_the_baseline_of_a_run_with_truth(tmp_path: Path) -> None:
    how = ["--truth", "true-up", "--truth-every", "2", "--start-method", "spawn", "--baseline", "lockstep"]
    code, text = run(["train", str(FAULTY), "--run-dir", str(tmp_path / "run"), "--steps", "30", *how])
    assert code == 0, text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["truth"], summary["truth_every"]) == ("true-up", 2)
    assert summary["baseline"]["schedule"] == "lockstep"


def test_the_baseline_may_be_an_earlier_run(folder: Path, tmp_path: Path) -> None:
    arguments = ["train", str(FAULTY), "--steps", "20", "--baseline"]
    code, _ = run([*arguments, str(folder), "--run-dir", str(tmp_path / "run")])
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["baseline"]["source"] == str(folder)
    assert summary["baseline"]["schedule"] == "lockstep"  # the one that it had measured
    code, text = run([*arguments, str(folder), "--run-dir", str(tmp_path / "two"), "--stages", "2"])
    assert code == 2
    assert "had 3 stages, and this run has 2" in text
    code, text = run([*arguments, "lockstp", "--run-dir", str(tmp_path / "b")])
    assert code == 2
    assert "the baseline lockstp cannot be read: No such file or directory; give lockstep, gpipe, 1f1b, none" in text
    assert not (tmp_path / "b").exists()
    (tmp_path / "s.json").write_text('{"schedule": "lockstep"}')
    code, text = run([*arguments, str(tmp_path / "s.json"), "--run-dir", str(tmp_path / "c")])
    assert code == 2
    assert "is no summary of a finished run (KeyError: 'signal')" in text


def test_an_interruption_during_the_baseline_ends_the_run(tmp_path: Path) -> None:
    arguments = ["train", str(FAULTY), "--run-dir", str(tmp_path / "run"), "--baseline", "lockstep"]
    with launched(arguments) as command:
        command.read_until("measuring the locked baseline")
        os.kill(command.pid, signal.SIGINT)
        code, text = command.wait()
    assert code == 130
    assert "interrupted while the baseline was measured; nothing has been trained" in text
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["exit_reason"] == "interrupted"
    assert not (tmp_path / "run" / "baseline").exists()


def test_a_metric_has_a_point_for_each_evaluation(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text((folder / "summary.json").read_text())
    with (tmp_path / "telemetry.jsonl").open("w") as file:
        print((folder / "telemetry.jsonl").read_text().splitlines()[0], file=file)
        for second, found in enumerate([[(100, 0.1), (200, 0.1)], [], [(300, 0.9)]]):
            evaluations = [(step, {"accuracy": accuracy}) for step, accuracy in found]
            line = {"time": second, "samples": [None] * 3, "evaluations": evaluations, "notes": []}
            print(json.dumps(line), file=file)
    chart = write_report(tmp_path).read_text().partition("test accuracy over steps")[2].partition("</svg>")[0]
    assert len(re.findall("<circle", chart)) == 3
    heights = re.findall(r'<circle [^>]* cy="([\d.]+)"', chart)
    assert heights[0] == heights[1] != heights[2]


def test_a_cell_says_what_it_is_where_there_is_no_heading(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for head in ("device", "useful", "no batch", "parameters"):
        assert page.count(f"data-head='{head}'") == 6  # three stages, and what they do under the lock


def test_a_timeline_of_many_spans_stays_small() -> None:
    moments = [[(n * 10, n * 10 + 1 + n % 9, n // 20, "forward") for n in range(1000)] for _ in range(64)]
    chart = draw_timeline(moments, 0, 10_000)
    assert 500 < chart.count("<rect") <= 2000
    assert len(chart) < 400_000


def test_charts_of_nothing_and_of_one_point() -> None:
    assert "nothing was measured" in draw_lines([Series("a", [])], x="steps")
    assert "nothing was measured" in draw_bars([], x="a", y="b")
    assert "circle" in draw_lines([Series("a", [(1.0, 2.0)])], x="steps")
    assert "<rect" in draw_bars([(2, 5)], x="a", y="b")
