"""The trace, the timeline and the advice: from spans to what people read."""

from __future__ import annotations

import gzip
import io
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from launcher import FAULTY, run
from rich.console import Console
from states import facts, sample

from stepahead.launch.advice import BLOCK, LOCK, advise, better_cut
from stepahead.launch.breakdown import Breakdown, break_down
from stepahead.launch.causes import TAX_SPANS, USEFUL_SPANS
from stepahead.launch.gantt import LETTERS, Moment, draw_gantt
from stepahead.launch.page import STYLE
from stepahead.launch.profile import blocks_of, table_of
from stepahead.launch.trace import Tracer, events_of
from stepahead.pipeline import TAX, USEFUL
from stepahead.workers.spans import NAMES

MS = 10**6


def moments(steps: int, stage: int) -> list[Moment]:
    """Return steps of 10 ms: the first stage learns a step later, the last one waits for its batch."""
    found: list[Moment] = []
    for step in range(steps):
        begin = step * 10 * MS
        if stage == 0:
            spans = [("forward", 0, 3), ("send", 3, 4), ("predict", 4, 5), ("backward", 5, 8), ("optimizer", 8, 9)]
            found += [(begin + a * MS, begin + b * MS, step, name) for name, a, b in spans]
            found.append((begin + 9 * MS, begin + 10 * MS, max(step - 1, 0), "learn"))
        else:
            spans = [("wait_input", 0, 4), ("forward", 4, 6), ("backward", 6, 8), ("send", 8, 9), ("optimizer", 9, 10)]
            found += [(begin + a * MS, begin + b * MS, step, name) for name, a, b in spans]
    return found


BOTH = [moments(12, 0), moments(12, 1)]


def check_trace(events: list[dict[str, Any]]) -> None:
    """Check what the format asks for, and that no two spans of a track overlap."""
    tracks: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    flows: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for event in events:
        assert event["ph"] in ("M", "X", "C", "s", "f")
        assert isinstance(event["pid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] != "M":
            assert event["ts"] >= 0 or event["ph"] == "C"
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        if event["ph"] in "sf":
            flows[event["cat"], event["id"]].append(event["ph"])
    for spans in tracks.values():
        ordered = sorted(spans)
        assert all(left[1] <= right[0] + 1e-6 for left, right in pairwise(ordered))
    assert all(sorted(ends) == ["f", "s"] for ends in flows.values())


def test_a_trace_has_tracks_counters_and_arrows() -> None:
    samples = [[sample(0.01, 0), sample(0.01, 1, last=True)]]
    events = list(events_of(facts(2), BOTH, samples))
    check_trace(events)
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == sum(map(len, BOTH))
    assert {event["name"] for event in events if event["ph"] == "C"} == {
        "stage 0 queues",
        "stage 0 loss",
        "stage 0 cosine",
        "stage 1 queues",
        "stage 1 loss",
    }
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == ["stage 0 (cpu, layers 0 to 8)", "stage 1 (cpu, layers 9 to 17)"]


def test_arrows_go_from_the_sending_to_the_use() -> None:
    events = list(events_of(facts(2), BOTH, []))
    starts = {(event["cat"], event["id"]): event for event in events if event["ph"] == "s"}
    ends = {(event["cat"], event["id"]): event for event in events if event["ph"] == "f"}
    down = [key for key in starts if key[0] == "activation"]
    up = [key for key in starts if key[0] == "gradient"]
    assert len(down) == 12
    assert len(up) == 11  # the last batch was not learnt from any more
    assert all((starts[key]["tid"], ends[key]["tid"]) == (0, 1) for key in down)
    assert all((starts[key]["tid"], ends[key]["tid"]) == (1, 0) for key in up)
    assert all(ends[key]["ts"] >= starts[key]["ts"] for key in [*down, *up])


def test_a_tracer_keeps_the_steps_that_are_asked_for_and_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer(facts(2), first=3, last=5)
    tracer.take([None, None], BOTH)
    assert {moment[2] for of_stage in tracer.moments for moment in of_stage} == {3, 4, 5}
    monkeypatch.setattr("stepahead.launch.trace.MOST", 30)
    bounded = Tracer(facts(2))
    for _ in range(100):
        bounded.take([None, None], [moments(12, 0)[-5:], moments(12, 1)[-5:]])
    assert sum(map(len, bounded.moments)) == 30


def test_a_breakdown_adds_up_to_the_step() -> None:
    stages = break_down(BOTH)
    assert stages is not None
    for stage in stages:
        assert stage.wall == pytest.approx(10.0)
        assert stage.busy + sum(stage.idle.values()) == pytest.approx(10.0)
    assert stages[0].tax == pytest.approx(2.0)
    assert next(iter(stages[1].idle)) == "wait_input"
    assert stages[1].idle["wait_input"] == pytest.approx(4.0)
    assert break_down([moments(1, 0), moments(1, 1)]) is None
    assert break_down([]) is None


def test_the_timeline_shows_the_last_steps() -> None:
    lines = [line.plain for line in draw_gantt(BOTH, 106)]
    assert lines[0] == "steps 7 to 11, 50.0 ms"
    assert lines[1].startswith("0     " + "f" * 6 + "ss" + "pp" + "b" * 6 + "oo")
    assert lines[2].startswith("1     " + "." * 8 + "f" * 4 + "b" * 4 + "ss" + "oo")
    assert [line.plain for line in draw_gantt([[], []], 80)] == ["no steps to show yet, or telemetry is off"]


def test_the_timeline_says_which_steps_it_has() -> None:
    few = [[moment for moment in of_stage if moment[2] >= 10] for of_stage in BOTH]
    assert draw_gantt(few, 80)[0].plain.startswith("steps 10 to 11, ")


def test_every_span_has_a_letter_and_is_counted_for_what_it_is() -> None:
    assert (USEFUL_SPANS, TAX_SPANS) == (USEFUL, TAX)
    assert set(LETTERS) == set(NAMES)
    page = STYLE
    for name in NAMES:
        breakdown = Breakdown({name: 4.0}, 10.0)
        assert breakdown.busy == (4.0 if name in (*USEFUL, *TAX) else 0.0)
        assert breakdown.tax == (4.0 if name in TAX else 0.0)
        assert f".t-{name} " in page or f".t-{name}," in page


def test_a_better_cut_evens_out_the_slowest_stage() -> None:
    slow = Breakdown({"forward": 6.0, "backward": 12.0, "predict": 2.0}, 21.0)
    fast = Breakdown({"forward": 6.0}, 21.0)
    cut, gain = better_cut([slow, fast], (6, 2), [1.0] * 8)
    assert cut == (4, 4)  # 4 layers of 3 and the predictor's 2, and 4 layers of 3
    assert gain == pytest.approx(20 / 14 - 1)
    assert better_cut([fast, fast], (4, 4), [1.0] * 8) == ((4, 4), 0.0)
    uneven = better_cut([Breakdown({"forward": 9.0}, 9.0), Breakdown({"forward": 3.0}, 9.0)], (3, 1), [1, 7, 1, 3])
    assert uneven[0] == (2, 2)


def test_advice_names_the_cause_and_the_line_to_type() -> None:
    slow = Breakdown({"forward": 6.0, "backward": 12.0, "wait_credit": 1.0}, 20.0)
    fast = Breakdown({"forward": 6.0, "wait_input": 13.0}, 20.0)
    said = advise([slow, fast], (6, 2), [1.0] * 8, [f"block.{n}" for n in range(8)], shared=False)
    assert said[1] == "stage 1 idles 65%: no batch has come; stage 0 is the slowest"
    assert said[0] == "stage 0 is the slowest: cut elsewhere: --cut block.4; expected +50%"
    assert "share a device" in advise([slow, fast], (6, 2), [1.0] * 8, list("abcdefgh"), shared=True)[0]
    starved = Breakdown({"forward": 1.0, "wait_input": 9.0}, 10.0)
    assert "give the loader workers" in advise([starved], (1,), [1.0], ["a"], shared=False)[0]
    assert advise([Breakdown({"forward": 10.0}, 10.0)], (1,), [1.0], ["a"], shared=False) == []


def test_nobody_waits_for_the_slowest_because_of_itself() -> None:
    slow = Breakdown({"forward": 6.0, "wait_input": 4.0}, 10.0)
    lonely = advise([Breakdown({"forward": 1.0}, 1.0), slow], (1, 1), [1.0] * 2, list("ab"))
    assert any("stage 1 idles 40%: it is the slowest and waits all the same" in line for line in lonely)
    waits = [Breakdown({"forward": 5.0, cause: 5.0}, 10.0) for cause in ("wait_gradient", "wait_input")]
    (lock,) = advise(waits, (1, 1), [1.0] * 2, list("ab"), waits=LOCK)
    both = Breakdown({"forward": 2.0, "wait_gradient": 5.0, "wait_input": 3.0}, 10.0)
    assert advise([both], (1,), [1.0], ["a"], waits=LOCK)[0].startswith("stage 0 idles 80%: that is the lock")
    (block,) = advise(waits, (1, 1), [1.0] * 2, list("ab"), shared=True, waits=BLOCK)
    assert "it waits for the others of its block" in block
    assert "that is the lock: it waits for the other stages within each step; --schedule decoupled does not" in lock


def test_the_baselines_breakdown_stands_beside() -> None:
    stages = [Breakdown({"forward": 6.0, "predict": 2.0, "wait_input": 1.5}, 10.0), Breakdown({"forward": 9.0}, 10.0)]
    locked = [Breakdown({"forward": 6.0, "wait_gradient": 12.0}, 20.0), Breakdown({"forward": 9.0}, 20.0)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_of(stages, locked, range(2)))
    rows = {tuple(line.split()) for line in console.export_text().splitlines()}
    assert {
        ("forward", "6.00", "6.00", "9.00", "9.00"),
        ("predict", "2.00", "-", "-", "-"),
        ("wait", "gradient", "-", "12.00", "-", "-"),
        ("other", "0.50", "2.00", "1.00", "11.00"),
        ("in", "all", "10.00", "20.00", "10.00", "20.00"),
        ("useful", "60%", "30%", "90%", "45%"),
        ("tax", "20%", "0%", "0%", "0%"),
        ("idle", "20%", "70%", "10%", "55%"),
    } <= rows


@pytest.mark.parametrize("use", ["learn", "true-up", "replay", "stash", "locked"])
def test_gradients_have_arrows_whatever_is_done_with_them(use: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    how = ["--schedule", "lockstep"] if use == "locked" else ["--truth", use]
    code, text = run(["train", str(FAULTY), "--run-dir", str(folder), "--steps", "30", "--baseline", "none", *how])
    assert code == 0, text
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    check_trace(events)
    arrows = [event for event in events if event["ph"] == "s" and event["cat"] == "gradient"]
    assert len(arrows) >= 2 * 15  # of the two edges, and of the steps that are traced
    spans = {event["name"] for event in events if event["ph"] == "X"}
    assert ("replay" in spans) == (use not in ("locked", "stash"))


@pytest.mark.parametrize(("stages", "width"), [(1, 80), (5, 80), (6, 80), (16, 80), (64, 40), (3, 10)])
def test_the_table_of_many_stages_comes_in_parts(stages: int, width: int) -> None:
    blocks = blocks_of(stages, width)
    assert [stage for block in blocks for stage in block] == list(range(stages))
    console = Console(width=max(width, 40), file=io.StringIO())
    known = [Breakdown({"forward": 100.0 + stage}, 200.0) for stage in range(stages)]
    for block in blocks_of(stages, max(width, 40)):
        console.print(table_of(known, [], block))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for stage in range(stages):
        assert f"stage {stage}" in text
        assert f"{100 + stage}.00" in text


def test_stages_that_idle_for_the_same_reason_are_named_together() -> None:
    busy = Breakdown({"forward": 10.0}, 10.0)
    waiting = [Breakdown({"forward": 10 - idle, "wait_input": idle}, 10.0) for idle in (2.0, 3.0)]
    said = advise([busy, *waiting], (1, 1, 1), [1.0] * 3, list("abc"), shared=False)
    assert said == ["stage 2 idles 30% (and 20% or more: 1): no batch has come; stage 0 is the slowest"]


def test_profile_says_where_the_time_went(tmp_path: Path) -> None:
    arguments = ["profile", str(FAULTY), "--run-dir", str(tmp_path / "run"), "--steps", "30", "--baseline", "none"]
    code, text = run(arguments)
    assert code == 0
    assert "milliseconds a step" in text
    assert "- stages share a device" in text or "- stage" in text
    assert "50 steps, the first 20 not traced; trace.json.gz opens in ui.perfetto.dev" in text
    with gzip.open(tmp_path / "run" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    check_trace(events)
    steps = {event["args"]["step"] for event in events if event["ph"] == "X"}
    assert steps == set(range(20, 50))
    assert {event["cat"] for event in events if event["ph"] == "s"} == {"activation", "gradient"}


def test_profile_of_too_little_says_so(tmp_path: Path) -> None:
    arguments = ["profile", str(FAULTY), "--run-dir", str(tmp_path / "run"), "--steps", "1", "--baseline", "none"]
    code, text = run(arguments)
    assert code == 0
    assert "too few steps were traced" in text
