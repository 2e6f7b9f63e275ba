"""The trace of a run: `trace.json.gz`, which opens in ui.perfetto.dev and in chrome://tracing.

One track a stage, with its spans by name; counters for queues, loss and cosine; arrows from the sending of an
activation to its use, and from the sending of a gradient to what is done with it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .gantt import Moment
from .monitor import Facts, Sample

__all__ = ["FILE", "Tracer", "events_of"]

FILE = "trace.json.gz"
WARM_UP = 10
MOST = 20_000
"""Spans that are kept in all: some hundred KB."""
MOST_SAMPLES = 1000
"""And samples: enough for a counter's course."""
SENT_DOWN, SENT_UP = ("forward",), ("predict", "backward", "replay")
"""What a stage does right before it sends an activation, or a gradient."""
USES = ("learn", "replay")
"""What it does with a gradient that has come; where it waits for that, its backward pass too."""


class Tracer:
    """Keeps the spans of some steps.

    Args:
        facts: What is known of the run.
        first: The first step to keep.
        last: The last one; as many as there is room for, unless given.
    """

    def __init__(self, facts: Facts, *, first: int = WARM_UP, last: int | None = None) -> None:
        self.facts = facts
        self.moments: list[list[Moment]] = [[] for _ in facts.devices]
        self.samples: list[Sequence[Sample | None]] = []
        self._first = first
        self._last = last

    def take(self, samples: Sequence[Sample | None], moments: Sequence[Sequence[Moment]]) -> None:
        """Keep what belongs to the steps in question."""
        if self._last is None and sum(map(len, self.moments)) >= MOST:
            return
        for kept, new in zip(self.moments, moments, strict=True):
            kept += [moment for moment in new if self._wanted(moment)]
        if any(self.moments) and len(self.samples) < MOST_SAMPLES:
            self.samples.append(samples)

    def write(self, run: Path) -> None:
        """Write the trace into a run folder."""
        trace = {"traceEvents": list(events_of(self.facts, self.moments, self.samples)), "displayTimeUnit": "ms"}
        try:
            with gzip.open(run / FILE, "wt", compresslevel=6) as file:
                json.dump(trace, file)
        except OSError:
            (run / FILE).unlink(missing_ok=True)
            raise

    def _wanted(self, moment: Moment) -> bool:
        return moment[2] >= self._first and (self._last is None or moment[2] <= self._last)


def events_of(
    facts: Facts, moments: Sequence[Sequence[Moment]], samples: Sequence[Sequence[Sample | None]]
) -> Iterator[dict[str, Any]]:
    """Yield a trace's events, in the format that chrome and Perfetto read; times are in microseconds."""
    origin = min((of_stage[0][0] for of_stage in moments if of_stage), default=0)
    yield {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": f"stepahead: {facts.job}"}}
    for stage, of_stage in enumerate(moments):
        name = f"stage {stage} ({facts.devices[stage]}, {facts.layers[stage]})"
        yield {"ph": "M", "pid": 0, "tid": stage, "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "pid": 0, "tid": stage, "name": "thread_sort_index", "args": {"sort_index": stage}}
        for begin, end, step, span in of_stage:
            place = {"pid": 0, "tid": stage, "ts": (begin - origin) / 1e3, "dur": (end - begin) / 1e3}
            yield {"ph": "X", "name": span, "cat": "span", "args": {"step": step}, **place}
    for sample_of_each in samples:
        yield from _counters(sample_of_each, origin)
    yield from _arrows(moments, origin, (*USES, "backward") if facts.signal in ("locked", "delayed") else USES)


def _counters(samples: Sequence[Sample | None], origin: int) -> Iterator[dict[str, Any]]:
    for stage, sample in enumerate(samples):
        if sample is None:
            continue
        place = {"ph": "C", "pid": 0, "ts": sample["time"] * 1e6 - origin / 1e3}
        queues = {"in": sample["queue_in"][0], "out": sample["queue_out"][0]}
        yield {**place, "name": f"stage {stage} queues", "args": queues}
        for name in ("loss", "cosine"):
            if sample[name] is not None:
                yield {**place, "name": f"stage {stage} {name}", "args": {name: sample[name]}}


def _arrows(moments: Sequence[Sequence[Moment]], origin: int, learnt: Sequence[str]) -> Iterator[dict[str, Any]]:
    number = 0
    for stage in range(len(moments) - 1):
        down, up = _sends(moments[stage], SENT_DOWN), _sends(moments[stage + 1], SENT_UP)
        links = [("activation", stage, stage + 1, down, ("forward",)), ("gradient", stage + 1, stage, up, learnt)]
        for name, source, target, sends, uses in links:
            for sent, used in _pairs(sends, [moment for moment in moments[target] if moment[3] in uses]):
                number += 1
                flow = {"name": name, "cat": name, "id": number, "pid": 0}
                yield {**flow, "ph": "s", "tid": source, "ts": (sent[0] - origin) / 1e3}
                yield {**flow, "ph": "f", "bp": "e", "tid": target, "ts": (used[0] - origin) / 1e3}


def _pairs(sends: Mapping[int, Moment], uses: Sequence[Moment]) -> Iterator[tuple[Moment, Moment]]:
    """Yield what was sent and what it was used for: the first such thing of the same step that came later."""
    found: dict[int, Moment] = {}
    for moment in uses:
        sent = sends.get(moment[2])
        if sent is not None and moment[0] >= sent[0]:
            found.setdefault(moment[2], moment)
    return ((sends[step], used) for step, used in found.items())


def _sends(moments: Sequence[Moment], after: Sequence[str]) -> dict[int, Moment]:
    """Return a stage's sends by step, those right after one of these spans; waiting for room may be between."""
    found: dict[int, Moment] = {}
    before = ""
    for moment in moments:
        if moment[3] == "send" and before in after:
            found.setdefault(moment[2], moment)
        if moment[3] not in ("send", "wait_credit"):
            before = moment[3]
    return found
