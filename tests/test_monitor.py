"""The monitor: samples in, the state of the run out; the clock is moved by hand."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
from rich.text import Text
from states import facts, monitor, sample

from stepahead.launch.gantt import draw_gantt
from stepahead.launch.monitor import Monitor, RunState, StageState, Trail
from stepahead.launch.recording import Recording, RecordingError, replay
from stepahead.launch.watched import Watched


def test_a_run_that_has_said_nothing_is_starting() -> None:
    state = Monitor(facts(2)).state()
    assert [stage.state for stage in state.stages] == ["starting", "starting"]
    assert (state.step, state.samples_per_second, state.speedup, state.eta) == (0, 0.0, None, None)
    made = Monitor(facts(2))
    made.take(0.0, [None, None])
    assert (made.state().stages[1].useful, made.state().stages[1].idle_share) == (None, None)


def whole(stage: StageState) -> float:
    assert stage.useful is not None
    assert stage.tax is not None
    assert stage.idle_share is not None
    return stage.useful + stage.tax + stage.idle_share


def test_rates_and_shares_are_those_of_the_last_seconds() -> None:
    made = Monitor(facts(1))
    for now in (0.0, 4.0, 9.0, 9.5):
        made.take(now, [sample(now)])
    fast = sample(14.5, steps=880, samples=633_600, counted=14.5e9)
    fast["seconds"] = sample(9.5)["seconds"] | {"useful": sample(9.5)["seconds"]["useful"] + 5.0}
    made.take(14.5, [fast])
    assert made.state().samples_per_second == pytest.approx(0.0)  # one change says nothing of a pace
    made.take(15.5, [{**fast, "time": 15.5, "counted": 15.5e9, "steps": 980, "samples": 705_600}])
    state = made.state()
    assert state.stages[0].steps_per_second == pytest.approx(100.0)
    assert state.samples_per_second == pytest.approx(72_000)
    assert (state.stages[0].useful, state.stages[0].tax) == (1.0, 0.0)


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_a_rate_does_not_depend_on_when_a_count_was_told(late: float) -> None:
    """A worker tells its count four times a second, and is looked at as often, but not at the same times."""
    made = Monitor(facts(1))
    for tick in range(12):
        told = 0.24 * tick - late * (tick > 6)  # ever longer ago, and once by much
        made.take(tick / 4, [sample(told) | {"time": tick / 4}])
    assert made.state().samples_per_second == pytest.approx(40 * 720)


def test_a_count_told_before_a_stop_is_no_part_of_the_pace_after_it() -> None:
    made = Monitor(facts(1))
    made.take(10.0, [sample(10.0)])
    made.forget()
    for now in (100.0, 100.25, 100.5, 100.75):
        told = now > 100.25
        worked = now - 90.0 if told else 10.0
        made.take(now, [sample(worked) | {"time": now, "counted": round((now if told else 10.0) * 1e9)}])
    assert made.state().samples_per_second == pytest.approx(40 * 720)


def test_a_recording_without_the_times_of_steps_has_a_pace_too() -> None:
    made = Monitor(facts(1))
    for tick in range(12):
        told = sample(tick / 4)
        del told["counted"]
        made.take(tick / 4, [told])
    assert made.state().samples_per_second == pytest.approx(40 * 720)


def test_shares_add_up_to_one() -> None:
    for stage in monitor(5).state().stages:
        assert whole(stage) == pytest.approx(1.0)
    assert monitor(4).state().stages[3].cause == "wait_input"


def test_slow_steps_have_a_rate_too() -> None:
    """Steps of 12 s: the window grows until it has some, and the rate is from the end of one step to another's."""
    made = Monitor(facts(1))
    for tick in range(4 * 130):
        steps = tick // 48
        made.take(tick / 4, [sample(tick / 4, steps=steps, samples=720 * steps, counted=12e9 * steps)])
    state = made.state()
    assert state.samples_per_second == pytest.approx(60.0)
    assert state.eta == pytest.approx(12 * (800 - state.step), rel=0.15)


def test_a_stage_that_is_stopped_keeps_the_shares_that_it_had() -> None:
    made = Monitor(facts(1))
    for tick in range(8):
        made.take(tick / 4, [sample(tick / 4)])
    before = made.state().stages[0]
    stopped = sample(60.0, life="stopped")
    stopped["seconds"] = stopped["seconds"] | {"useful": 60.0}
    made.take(60.0, [stopped])
    after = made.state().stages[0]
    assert (after.useful, after.idle) == (before.useful, before.idle)


def test_how_many_steps_there_will_be_may_show_later() -> None:
    made = monitor(2, total_steps=None)
    assert made.state().eta is None
    made.expect(None)
    assert made.state().eta is None
    made.expect(600)
    assert made.state().eta == pytest.approx(5.0, rel=0.05)
    made.expect(700)  # the second pass was longer
    assert made.state().eta == pytest.approx(7.5, rel=0.05)


def test_the_speedup_is_over_the_baseline() -> None:
    state = monitor(4).state()
    assert state.samples_per_second == pytest.approx(28_800)
    assert state.speedup == pytest.approx(1.8)
    assert monitor(4, baseline=None).state().speedup is None


def test_the_time_left_is_at_the_pace_so_far() -> None:
    state = monitor(2).state()
    assert state.step == 400
    assert state.eta == pytest.approx(10.0)
    assert monitor(2, total_steps=None).state().eta is None


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({}, "running"),
        ({"doing": "wait_input", "doing_seconds": 0.2}, "running"),
        ({"doing": "wait_input", "doing_seconds": 2.0}, "waits for a batch"),
        ({"doing": "wait_credit", "doing_seconds": 2.0}, "waits for room"),
        ({"doing": "wait_gradient", "doing_seconds": 2.0}, "waits for a gradient"),
        ({"doing": "forward", "doing_seconds": 2.0}, "running"),
        ({"life": "stopped", "doing": "wait_input", "doing_seconds": 2.0}, "stopped"),
        ({"life": "finished"}, "finished"),
        ({"life": "lost"}, "lost"),
    ],
)
def test_the_state_of_a_stage_is_a_word(more: dict[str, Any], word: str) -> None:
    made = Monitor(facts(1))
    made.take(1.0, [sample(1.0, **more)])
    assert made.state().stages[0].state == word


def test_a_counter_that_seems_to_go_back_is_no_negative_share() -> None:
    made = Monitor(facts(1))
    made.take(1.0, [sample(1.0)])
    back = sample(2.0)
    back["seconds"]["tax"] = 0.0  # read while a span was being closed
    made.take(2.0, [back])
    stage = made.state().stages[0]
    assert stage.tax == 0.0
    assert whole(stage) == pytest.approx(1.0)


def test_with_telemetry_off_the_shares_are_not_known() -> None:
    made = Monitor(facts(2))
    for now in (1.0, 2.0, 3.0):
        made.take(now, [sample(now, stage, seconds={}) for stage in range(2)])
    for stage in made.state().stages:
        assert (stage.useful, stage.tax, stage.idle, stage.idle_share, stage.cause) == (None, None, {}, None, None)
        assert stage.steps_per_second == pytest.approx(40.0)


def test_trails_keep_the_whole_course_in_few_points() -> None:
    trail = Trail()
    for value in range(1000):
        trail.add(float(value))
    trail.add(None)
    assert 30 <= len(trail.points) <= 60
    assert trail.points[0] == 0.0
    assert trail.points[-1] > 960
    assert trail.points == sorted(trail.points)


def test_notes_are_kept_and_new_ones_known() -> None:
    made = Monitor(facts(1, notes=("first",)))
    for number in range(30):
        made.note(str(number))
    assert made.state().notes[-1] == "29"
    assert made.new_notes(28) == ["28", "29"]
    assert made.new_notes(30) == []


def test_a_state_travels_as_json_and_as_msgpack() -> None:
    state = monitor(3).state()
    assert RunState.from_dict(json.loads(json.dumps(state.as_dict()))) == state
    assert RunState.from_dict(msgpack.unpackb(msgpack.packb(state.as_dict()))) == state


def test_a_recording_gives_the_same_states_again(tmp_path: Path) -> None:
    made, states = Monitor(facts(2)), list[RunState]()
    recording = Recording(tmp_path, made.facts)
    for tick in range(8):
        made.evaluated(tick, {"accuracy": tick / 10})
        made.note(f"note {tick}")
        now = tick / 4 + 60 * (tick > 4)
        if tick == 5:  # all was stopped for a minute
            made.forget()
        samples = [sample(tick / 4, stage) for stage in range(2)]
        made.take(now, samples)
        recording.add(now, samples, made, resumed=tick == 5)
        states.append(made.state())
    recording.close("done")
    again = [again.state() for _, again in replay(tmp_path)]
    assert again[:-1] == states
    assert again[-1].reason == "done"


def test_a_recording_has_a_timeline_now_and_then(tmp_path: Path) -> None:
    made = Monitor(facts(2))
    recording = Recording(tmp_path, made.facts)
    drawn: list[list[Text]] = []
    for tick in range(9):
        second = tick * 10**9 // 4
        for ahead in (2, 0):  # the first stage is two steps ahead
            spans = [(second + n, second + n + 4, 10 * tick + n // 4 + ahead, "forward") for n in range(0, 40, 4)]
            made.recent[0 if ahead else 1].extend(spans)
        samples = [sample(tick / 4, stage) for stage in range(2)]
        made.take(tick / 4, samples)
        recording.add(tick / 4, samples, made)
        drawn.append(draw_gantt(made.recent, 80))
    recording.close("done")
    again = [draw_gantt(again.recent, 80) for _, again in replay(tmp_path)]
    assert "no steps to show yet" in again[3][0].plain
    assert [again[4], again[8]] == [drawn[4], drawn[8]]
    assert again[7] == drawn[4]


def test_a_long_recording_stays_small(tmp_path: Path) -> None:
    made = Monitor(facts(1))
    made.see([[(10**15 + n, 10**15 + n + 1, n // 8, "wait_gradient") for n in range(400)]])
    recording = Recording(tmp_path, made.facts)
    hour = 4 * 3600
    for tick in range(hour):
        recording.add(tick / 4, [sample(tick / 4)], made)
    recording.close("done")
    lines = (tmp_path / "telemetry.jsonl").read_text().splitlines()
    assert 2000 < len(lines) < 4000
    with_spans = [line for line in lines if '"recent"' in line]
    assert 500 < len(with_spans) < 1500
    assert sum(map(len, with_spans)) < 4_000_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no telemetry.jsonl that can be read (FileNotFoundError)"),
        ("{}\n", "telemetry.jsonl, line 1, is not of a recording (KeyError: 'facts')"),
        ("nonsense\n", "telemetry.jsonl, line 1, is not JSON"),
    ],
)
def test_what_is_no_recording_is_one_sentence(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "telemetry.jsonl").write_text(text)
    with pytest.raises(RecordingError) as caught:
        list(replay(tmp_path))
    assert said in str(caught.value)


def test_a_recording_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    made = Monitor(facts(1))
    recording = Recording(tmp_path, made.facts)
    for tick in range(3):
        recording.add(tick, [sample(tick)], made)
    recording.close(None)
    file = tmp_path / "telemetry.jsonl"
    whole = "".join(file.read_text().splitlines(keepends=True)[:-1])
    file.write_text(whole[:-20])
    assert len(list(replay(tmp_path))) == 2
    file.write_text(whole[:-20] + "\n" + whole)
    with pytest.raises(RecordingError, match="line 4, is not JSON"):
        list(replay(tmp_path))


def test_a_full_disk_ends_the_recording_and_not_the_run(tmp_path: Path) -> None:
    made = Monitor(facts(1))
    recording = Recording(tmp_path, made.facts)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        for tick in range(20):
            recording.add(tick, [sample(tick)], made)
        recording.close("done")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert recording.failed is not None
    assert 0 < len(list(replay(tmp_path))) < 20


@pytest.mark.parametrize(
    ("failed", "killed", "word"),
    [(False, False, "lost"), (False, True, "ended"), (True, False, "ended"), (True, True, "ended")],
)
def test_a_worker_that_said_that_it_failed_is_not_lost(failed: bool, killed: bool, word: str) -> None:
    """Its link broke when another worker was killed, and it was gone before the supervisor could end it."""
    worker = Watched(name="1", pid=1, pidfd=-1, ours=True, ended=True, failed=failed, killed=killed)
    assert worker.life == word
