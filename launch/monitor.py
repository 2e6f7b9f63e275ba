"""The monitor: folds what workers say of themselves into one state of the run, which is all that people are shown.

Pure: it is given samples with their time, and knows no clock, no process and no screen. A recorded run gives the same
states again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from .causes import CAUSES
from .gantt import Moment
from .sketch import StageNodes, nodes_from

__all__ = ["COMPARABLE", "Baseline", "Facts", "Monitor", "RunState", "Sample", "StageState", "Trail", "facts_from"]

WINDOW = 5.0
LEAST_STEPS, LONGEST_WINDOW = 10, 300.0
"""The window grows until it has so many steps, but not beyond so many seconds."""
LONG = 0.4
"""Seconds of waiting after which it is the state of a stage, and no longer its share of idle time alone."""
COMPARABLE = 10
"""Steps from which on a run has a pace that can be compared."""
POINTS = 60
PARTS = ("useful", "tax", *CAUSES)
WAITS = {"wait_input": "waits for a batch", "wait_credit": "waits for room", "wait_gradient": "waits for a gradient"}
PLAIN = ("steps", "loss", "cosine", "relative_error", "unanswered", "held", "gradient_norm", "memory")
NOTES = 20
MOMENTS, LEAST_MOMENTS = 640, 40
"""Of the last spans, how many are kept in all, and of each stage at least."""
Sample = Mapping[str, Any]
"""What a worker says of itself: `read_sample`, and besides `time`, `life` (running, stopped ..) and `gpu`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What the same stages do under a locked schedule."""

    schedule: str
    source: str
    """Where the figures are from: "measured" or the name of a file."""
    samples_per_second: float
    useful: tuple[float, ...]
    """Of each stage, as a share of its time; empty without telemetry."""
    idle: tuple[dict[str, float], ...] = ()
    """The rest of it, by cause; older runs have not kept that either."""
    spans: tuple[dict[str, float], ...] = ()
    """Milliseconds a step by span, and "other"; empty without telemetry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a run when it begins."""

    job: str
    schedule: str
    signal: str
    run: str
    """Its folder."""
    devices: tuple[str, ...]
    layers: tuple[str, ...]
    """Of each stage, what it is made of."""
    total_steps: int | None = None
    machine: str = ""
    virtual: bool = False
    baseline: Baseline | None = None
    notes: tuple[str, ...] = ()
    graph: tuple[StageNodes, ...] = ()
    """Of a model that is a graph, the nodes of each group."""


@dataclass(slots=True, kw_only=True)
class StageState:
    """One stage, as it is shown."""

    state: str = "starting"
    """running, waiting for .., stopped, finished, ended, lost: always a word."""
    state_seconds: float = 0.0
    useful: float | None = None
    """As a share of its time; None, as tax is, while nobody knows, and with telemetry off."""
    tax: float | None = None
    idle: dict[str, float] = field(default_factory=dict[str, float])
    """By cause; with useful and tax it makes 1. Empty while nobody knows."""
    steps: int = 0
    steps_per_second: float = 0.0
    queue_in: tuple[int, int] = (0, 0)
    """Messages, and how many there is room for."""
    queue_out: tuple[int, int] = (0, 0)
    loss: float | None = None
    losses: tuple[float, ...] = ()
    cosine: float | None = None
    cosines: tuple[float, ...] = ()
    relative_error: float | None = None
    missed: float | None = None
    """What steps on guesses lack, over the length of the true gradient."""
    inputs_error: float | None = None
    """How far guesses of inputs are off, over the length of the inputs."""
    windows_cosine: float | None = None
    """How good guesses of what comes after a window are."""
    lag_p50: int = 0
    lag_max: int = 0
    unanswered: int = 0
    held: int = 0
    """Bytes that are kept for batches whose gradient has not come."""
    gradient_norm: float | None = None
    memory: int = 0
    gpu: tuple[float, float] | None = None
    """Utilisation as a share and temperature in degrees Celsius, where there is a GPU that says."""

    @property
    def idle_share(self) -> float | None:
        return sum(self.idle.values()) if self.idle else None

    @property
    def cause(self) -> str | None:
        """What it is idle for most."""
        return max(self.idle, key=lambda cause: self.idle[cause], default=None)


@dataclass(slots=True, kw_only=True)
class RunState:
    """A run, as it is shown."""

    facts: Facts
    seconds: float
    """Since the first step."""
    eta: float | None
    """Seconds until the end, at the pace so far."""
    step: int
    samples: int
    samples_per_second: float
    """Over the last seconds."""
    metrics: dict[str, float]
    stages: list[StageState]
    notes: list[str]
    """The last things that were said."""
    reason: str | None = None
    """How it ended, once it has."""
    recent: list[list[Moment]] = field(default_factory=list[list[Moment]])
    """The last spans of each stage."""

    @property
    def speedup(self) -> float | None:
        """Samples per second over those of the locked baseline."""
        baseline = self.facts.baseline
        if baseline is None or self.step < COMPARABLE or not self.samples_per_second:
            return None
        return self.samples_per_second / baseline.samples_per_second

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values; by hand, for `asdict` copies every number of every course."""
        stages = [{name: getattr(stage, name) for name in StageState.__slots__} for stage in self.stages]
        plain = {name: getattr(self, name) for name in RunState.__slots__}
        return {**plain, "facts": asdict(self.facts), "stages": stages}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunState:
        """Return the state that `as_dict` gave, also after it went through JSON or msgpack."""
        stages = [StageState(**_tuples(stage)) for stage in values["stages"]]
        recent = [[tuple(moment) for moment in moments] for moments in values["recent"]]
        made: dict[str, Any] = {**values, "facts": facts_from(values["facts"]), "stages": stages, "recent": recent}
        return cls(**made)


def facts_from(values: Mapping[str, Any]) -> Facts:
    """Return the facts that `asdict` gave."""
    baseline = values["baseline"]
    made = _tuples(values)
    made["baseline"] = None if baseline is None else Baseline(**_tuples(baseline))
    made["graph"] = tuple(map(nodes_from, values.get("graph", ())))
    return Facts(**made)


class Trail:
    """The course of a figure in at most `POINTS` points: when they are full, every second one goes."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._every = 1
        self._seen = 0

    def add(self, value: float | None) -> None:
        if value is None:
            return
        if self._seen % self._every == 0:
            self.points.append(value)
        self._seen += 1
        if len(self.points) > POINTS:
            self.points = self.points[::2]
            self._every *= 2


class Monitor:
    """Takes samples in, and says how the run is.

    Args:
        facts: What was known when the run began.
        window: Seconds over which shares and rates are taken.
    """

    def __init__(self, facts: Facts, window: float = WINDOW) -> None:
        self.window = window
        self.facts = facts
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        """What each gave, and after how many steps."""
        self.notes: deque[str] = deque(facts.notes, maxlen=NOTES)
        self.noted = 0
        """How many things were said since the beginning."""
        self.reason: str | None = None
        self._begun: float | None = None
        self._first_step = 0
        self._now = 0.0
        self._window: deque[tuple[float, Sequence[Sample | None]]] = deque()
        self._losses = [Trail() for _ in facts.devices]
        self._cosines = [Trail() for _ in facts.devices]
        self._shares = [dict[str, float]() for _ in facts.devices]
        kept = max(MOMENTS // len(facts.devices), LEAST_MOMENTS)
        self.recent = [deque[Moment](maxlen=kept) for _ in facts.devices]

    def expect(self, steps: int | None) -> None:
        """Take note of how many steps there will be, where that shows only as the data is gone through."""
        if steps is not None and steps != self.facts.total_steps:
            self.facts = replace(self.facts, total_steps=steps)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Take in what an evaluation gave."""
        self.evaluations.append((step, metrics))

    def note(self, line: str) -> None:
        """Remember something that was said."""
        self.notes.append(line)
        self.noted += 1

    def new_notes(self, noted: int) -> list[str]:
        """Return what was said since so many things had been."""
        new = self.noted - noted
        return list(self.notes)[-new:] if new else []

    def take(self, now: float, samples: Sequence[Sample | None]) -> None:
        """Take in a sample of each stage; None for one that has not said anything yet."""
        last = samples[-1]
        if self._begun is None and last and last["steps"]:
            self._begun, self._first_step = now, last["steps"]
        self._now = now
        self._window.append((now, samples))
        while len(self._window) > 2 and self._window[1][0] <= now - self.window and self._enough_steps():
            self._window.popleft()
        for sample, losses, cosines in zip(samples, self._losses, self._cosines, strict=True):
            if sample is not None:
                losses.add(sample["loss"])
                cosines.add(sample["cosine"])

    def forget(self) -> None:
        """Take rates and shares from the next samples on."""
        self._window.clear()

    def see(self, moments: Sequence[Sequence[Moment]]) -> None:
        """Take in the spans of each stage since the last time."""
        for recent, new in zip(self.recent, moments, strict=True):
            recent.extend(new)

    def state(self) -> RunState:
        """Return how the run is."""
        stages = [self._stage(index) for index in range(len(self.facts.devices))]
        _, last = self._ends(len(stages) - 1)
        return RunState(
            facts=self.facts,
            seconds=0.0 if self._begun is None else self._now - self._begun,
            eta=None if last is None else self._eta(last["steps"]),
            step=last["steps"] if last else 0,
            samples=last["samples"] if last else 0,
            samples_per_second=self._rate(len(stages) - 1, "samples"),
            metrics=dict(self.evaluations[-1][1]) if self.evaluations else {},
            stages=stages,
            notes=list(self.notes),
            reason=self.reason,
            recent=[list(moments) for moments in self.recent],
        )

    def _stage(self, index: int) -> StageState:
        first, last = self._ends(index)
        if last is None:
            return StageState()
        shares = self._shares[index] if last["life"] != "running" else _shares(first, last)
        self._shares[index] = dict(shares)
        plain = {name: last[name] for name in PLAIN}
        return StageState(
            **plain,
            state=_state_of(last),
            state_seconds=last["doing_seconds"],
            useful=shares.get("useful"),
            tax=shares.get("tax"),
            idle={cause: shares[cause] for cause in CAUSES if shares},
            steps_per_second=self._rate(index, "steps"),
            queue_in=tuple(last["queue_in"]),
            queue_out=tuple(last["queue_out"]),
            losses=tuple(self._losses[index].points),
            cosines=tuple(self._cosines[index].points),
            missed=last.get("missed"),
            inputs_error=last.get("inputs_error"),
            windows_cosine=last.get("windows_cosine"),
            lag_p50=last["lag"][0],
            lag_max=last["lag"][1],
            gpu=None if last["gpu"] is None else tuple(last["gpu"]),
        )

    def _eta(self, step: int) -> float | None:
        total = self.facts.total_steps
        if total is None or self._begun is None or step <= self._first_step:
            return None
        return (self._now - self._begun) / (step - self._first_step) * max(total - step, 0)

    def _enough_steps(self) -> bool:
        """Return whether the window without its oldest sample still has some steps, or is as long as it may be."""
        oldest, newest = self._window[1][1][-1], self._window[-1][1][-1]
        steps = newest["steps"] - oldest["steps"] if oldest and newest else 0
        return steps >= LEAST_STEPS or self._now - self._window[1][0] > LONGEST_WINDOW

    def _ends(self, index: int) -> tuple[Sample | None, Sample | None]:
        """Return the first and the last sample of a stage in the window."""
        known = [samples[index] for _, samples in self._window if samples[index] is not None]
        return (known[0], known[-1]) if known else (None, None)

    def _rate(self, index: int, name: str) -> float:
        """Return how much a count grows in a second, over the window, from the end of one step to that of another.

        Of steps that ended in it: the count that is told first may be from before a stop.
        """
        known = [sample for _, samples in self._window if (sample := samples[index]) is not None]
        changes = [after for before, after in pairwise(known) if after[name] != before[name]]
        if len(changes) < 2:
            return 0.0
        first, last = changes[0], changes[-1]
        seconds = _done_at(last) - _done_at(first)
        return (last[name] - first[name]) / seconds if seconds > 0 else 0.0


def _shares(first: Sample | None, last: Sample) -> dict[str, float]:
    """Return the shares of the parts between two samples: they add up to 1, or there are none to know."""
    if not last["seconds"]:
        return {}
    before = first["seconds"] if first and first is not last else {}
    parts = {name: max(last["seconds"].get(name, 0.0) - before.get(name, 0.0), 0.0) for name in PARTS}
    total = sum(parts.values())
    if total <= 0:
        return {name: float(name == "other") for name in PARTS}
    return {name: seconds / total for name, seconds in parts.items()}


def _done_at(sample: Sample) -> float:
    """Return when the last step that is counted was done; older recordings have the time of the look alone."""
    return float(sample["counted"] / 1e9 if "counted" in sample else sample["time"])


def _state_of(sample: Sample) -> str:
    if sample["life"] != "running":
        return str(sample["life"])
    return WAITS.get(sample["doing"], "running") if sample["doing_seconds"] > LONG else "running"


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with tuples in place of the lists that JSON and msgpack make of them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
