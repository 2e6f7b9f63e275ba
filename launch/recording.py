"""The recording of a run: `telemetry.jsonl`, from which `playback` and the report are made.

    {"facts": {...}}                                                        the first line
    {"time": 12.25, "samples": [...], "evaluations": [...], "notes": ..}    several a second at first, then fewer
    {"reason": "done"}                                                      the last one

`time` is in seconds of the machine's monotonic clock. A line is only written when as much as a `DENSITY`th of the run's
time has passed since the last one: an hour makes some 3,000 lines, a day some 6,000. Now and then one has `recent` too,
the spans of the last steps.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from .gantt import last_steps
from .monitor import Facts, Monitor, Sample, facts_from

__all__ = ["FILE", "Recording", "RecordingError", "lines_of", "readable", "replay"]

FILE = "telemetry.jsonl"
DENSITY = 1000
SPANS_EVERY, SPANS_DENSITY = 1.0, 200
"""Spans are written down as seldom as that, in seconds and in parts of the run, and less often for more stages."""


class RecordingError(ValueError):
    """There is no recording that can be read."""


@contextmanager
def readable(what: str) -> Generator[None]:
    """A context in which a value that is not what it should be, in a file that may be damaged, is a RecordingError."""
    try:
        yield
    except RecordingError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RecordingError(f"{what} ({type(error).__name__}: {error})") from error


class Recording:
    """Writes a run's telemetry down, for as long as that works: a full disk must not end the run."""

    def __init__(self, run: Path, facts: Facts) -> None:
        self.failed: OSError | None = None
        self._file: TextIO | None = None
        try:
            self._file = (run / FILE).open("w", buffering=1)
        except OSError as error:
            self.failed = error
        self._skipped: dict[str, Any] | None = None
        self._begun: float | None = None
        self._written = 0.0
        self._spans_written = 0.0
        self._evaluations = 0
        self._stages = len(facts.devices)
        self._write({"facts": asdict(facts)})

    def add(self, now: float, samples: Sequence[Sample | None], monitor: Monitor, *, resumed: bool = False) -> None:
        """Write down a sample of each stage, unless the last line is too young, and whether all was stopped before."""
        line: dict[str, Any] = {"time": round(now, 4), "samples": samples, "total_steps": monitor.facts.total_steps}
        line |= {"evaluations": monitor.evaluations[self._evaluations :], "notes": list(monitor.notes)}
        if self._begun is None:
            self._begun = now
        elif not resumed and now - self._written < (now - self._begun) / DENSITY:
            self._skipped = line
            return
        self._written, self._skipped = now, None
        if resumed:
            line["resumed"] = True
        if now - self._spans_written >= max(SPANS_EVERY, (now - self._begun) * self._stages / SPANS_DENSITY):
            self._spans_written = now
            line["recent"] = last_steps(monitor.recent)
        self._write(line)

    def close(self, reason: str | None) -> None:
        """Write down how the run ended."""
        if self._skipped is not None:
            self._write(self._skipped)
        self._write({"reason": reason})
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._evaluations += len(line.get("evaluations", ()))
        if self.failed is None and self._file is not None:
            try:
                self._file.write(json.dumps(line) + "\n")
            except OSError as error:
                self.failed = error


def lines_of(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a recording; a last one that was cut off is left out."""
    try:
        lines = (run / FILE).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{run} has no {FILE} that can be read ({type(error).__name__})") from None
    for number, text in enumerate(lines, start=1):
        try:
            yield json.loads(text)
        except ValueError:
            if number == len(lines) > 1:
                return  # the run was killed while it wrote
            raise RecordingError(f"{run / FILE}, line {number}, is not JSON") from None


def replay(run: Path) -> Iterator[tuple[float, Monitor]]:
    """Yield a monitor again and again, after each line of a recording, with that line's time."""
    monitor: Monitor | None = None
    now = 0.0
    for number, line in enumerate(lines_of(run), start=1):
        with readable(f"{run / FILE}, line {number}, is not of a recording"):
            if monitor is None:
                monitor = Monitor(facts_from(line["facts"]))
                continue
            now = _replay_line(line, monitor, now)
        yield now, monitor


def _replay_line(line: Mapping[str, Any], monitor: Monitor, now: float) -> float:
    """Let the monitor take a line in, and return the line's time."""
    if "reason" in line:
        monitor.reason = line["reason"]
        return now
    for step, metrics in line.get("evaluations", ()):
        monitor.evaluated(step, metrics)
    monitor.expect(line.get("total_steps"))
    if line.get("resumed"):
        monitor.forget()
    monitor.notes.clear()
    monitor.notes.extend(line["notes"])
    monitor.take(line["time"], line["samples"])
    monitor.state()  # what cannot be shown is found here
    if "recent" in line:
        monitor.see([[(begin, end, step, name) for begin, end, step, name in spans] for spans in line["recent"]])
    return float(line["time"])
