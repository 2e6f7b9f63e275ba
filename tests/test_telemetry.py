"""What workers note of themselves: nothing is lost from the totals, and the three parts of the time add up to 1."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepahead.launch import causes
from stepahead.pipeline import TAX, USEFUL
from stepahead.workers import Spans, Telemetry, read_sample
from stepahead.workers.loop import Progress
from stepahead.workers.samples import write_sample
from stepahead.workers.spans import CAUSES, NAMES, parts_of


class Clock:
    """A clock that is moved by hand, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 10**9

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def spend(spans: Spans, clock: Clock, name: str, seconds: float) -> None:
    with spans(name):  # type: ignore[arg-type]
        clock.now += round(seconds * 1e9)


def test_every_span_is_useful_tax_or_idle_and_the_docs_say_which() -> None:
    parts = {name: parts_of({**dict.fromkeys(NAMES, 0.0), name: 1.0}, 1.0) for name in NAMES}
    for name, found in parts.items():
        (part,) = [part for part, seconds in found.items() if seconds]
        assert (part == "useful", part == "tax", part in CAUSES) == (
            name in USEFUL,
            name in TAX,
            name not in (*USEFUL, *TAX),
        )
    with open(os.path.join(os.path.dirname(__file__), "..", "docs", "telemetry.md")) as file:
        documented = file.read()
    for name, found in parts.items():
        (part,) = [part for part, seconds in found.items() if seconds]
        assert f"| `{name}` | {'idle: ' if part in CAUSES else ''}{part} |" in documented


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.floats(0, 5)), max_size=30), st.floats(0.001, 5))
def test_the_shares_add_up_to_one(spent: list[tuple[str, float]], rest: float) -> None:
    clock = Clock()
    spans = Spans(Telemetry(8), clock)
    spans.begin()
    for name, seconds in spent:
        spend(spans, clock, name, seconds)
    clock.now += round(rest * 1e9)
    shares = spans.shares()
    idle = shares["idle"]
    assert isinstance(idle, dict)
    assert shares["useful"] + shares["tax"] + sum(idle.values()) == pytest.approx(1.0)  # type: ignore[operator]
    assert min(idle.values()) >= -1e-9


def test_those_who_show_it_know_the_same_causes() -> None:
    assert CAUSES == causes.CAUSES == tuple(causes.CAUSE_WORDS) == tuple(causes.CAUSE_HEADS)


def test_before_it_begins_all_is_idle() -> None:
    idle = {**dict.fromkeys(CAUSES, 0.0), "other": 1.0}
    assert Spans(Telemetry(8)).shares() == {"useful": 0.0, "tax": 0.0, "idle": idle}


def test_what_is_open_counts_until_now(clock: Clock) -> None:
    spans = Spans(Telemetry(8), clock)
    spans.begin()
    spans("wait_input").__enter__()
    clock.now += 3 * 10**9
    sample = read_sample(spans.telemetry, clock.now)
    assert (sample["doing"], sample["doing_seconds"]) == ("wait_input", 3.0)
    assert sample["seconds"]["wait_input"] == 3.0
    assert sample["wall"] == 3.0


def test_a_count_is_told_with_its_time() -> None:
    telemetry, progress = Telemetry(8), Progress()
    before = time.perf_counter_ns()
    progress.count(16)
    after = time.perf_counter_ns()
    write_sample(telemetry, progress, None, None)
    sample = read_sample(telemetry)
    assert (sample["steps"], sample["samples"]) == (1, 16)
    assert before <= sample["counted"] <= after


def test_time_in_which_it_was_stopped_is_other(clock: Clock) -> None:
    spans = Spans(Telemetry(8), clock)
    spans.begin()
    with spans("forward"):
        clock.now += 2 * 10**9
        spans.resume()  # what it did in these seconds nobody knows
        clock.now += 10**9
    seconds = spans.seconds
    assert (seconds["forward"], parts_of(seconds, spans.wall)["other"]) == pytest.approx((1.0, 2.0))


def test_another_process_reads_what_a_worker_writes(clock: Clock) -> None:
    written = Telemetry(8, shared=True)
    assert written.descriptor is not None
    spans = Spans(written, clock)
    read = Telemetry(descriptor=os.dup(written.descriptor))
    spans.begin()
    for step in range(3):
        spans.step = step
        spend(spans, clock, "forward", 1.0)
    written["steps"], written["loss"] = 3, 0.25
    sample = read_sample(read, clock.now)
    assert (sample["steps"], sample["loss"], sample["cosine"]) == (3, 0.25, None)
    assert sample["seconds"]["useful"] == 3.0
    events, after, lost = read.read_events(0)
    assert [(event.step, NAMES[event.span], event.end - event.begin) for event in events] == [
        (step, "forward", 10**9) for step in range(3)
    ]
    assert (after, lost) == (3, 0)
    spans.end()
    clock.now += 10**10
    assert read_sample(read, clock.now)["wall"] == 3.0
    written.close()
    read.close()


def test_events_that_were_overwritten_are_counted_and_the_totals_have_them(clock: Clock) -> None:
    telemetry = Telemetry(4)
    spans = Spans(telemetry, clock)
    spans.begin()
    for step in range(10):
        spans.step = step
        spend(spans, clock, "backward", 0.5)
    events, after, lost = telemetry.read_events(0)
    assert ([event.step for event in events], after, lost) == ([7, 8, 9], 10, 7)  # the place of 6 is the next one's
    assert telemetry.read_events(10) == ([], 10, 0)
    assert spans.seconds["backward"] == 5.0


def test_telemetry_that_is_off_times_nothing_and_shares_are_not_known() -> None:
    readings = iter([1, 1 + 10**9])
    spans = Spans(Telemetry(), lambda: next(readings))
    spans.begin()
    for name in NAMES:
        with spans(name):
            pass
    spans.end()
    assert spans.telemetry.read_events(0) == ([], 0, 0)
    assert spans.wall == 1.0  # the two readings were of its begin and its end
    assert spans.shares() == {"useful": None, "tax": None, "idle": None}
    sample = read_sample(spans.telemetry)
    assert (sample["wall"], sample["seconds"], sample["doing"]) == (1.0, {}, "other")


def test_figures_that_are_not_known_are_none() -> None:
    sample = read_sample(Telemetry(), 5)
    assert sample["loss"] is sample["gradient_norm"] is None
    assert (sample["steps"], sample["lag"], sample["doing"], sample["wall"]) == (0, [0, 0], "other", 0.0)
