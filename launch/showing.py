"""How a run is shown while it goes on: a live view in a process of its own, or plain lines; broadcast and recorded too.

The view reads the broadcast like any other viewer. When its user leaves it, or sends all of us to the background, lines
follow. It can neither slow the run down nor break it; if it dies, the terminal is set right from here.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

from rich.console import Console

from stepahead.pipeline import Wires, node_of, owner_of

from .broadcast import Publisher
from .environment import machine
from .folder import RunFolder
from .gantt import Moment
from .lifeline import die_with
from .lines import Lines
from .monitor import Baseline, Facts, Monitor, Sample
from .plan import Plan
from .recording import Recording
from .screen import say
from .sketch import EARLIER, StageNodes
from .start import fork
from .terminal import is_ours, is_usable, restore, save
from .viewer import watch

__all__ = ["Showing", "facts_of"]

LAST_FRAME = 2.0
"""Seconds that a view has to go, once the run is over."""
STOPPED = 2.0
"""Seconds between two looks after which all was stopped in between, by Ctrl-Z for example: rates begin anew."""


def facts_of(plan: Plan, folder: RunFolder, baseline: Baseline | None) -> Facts:
    """Return what is known of a run when it begins."""
    return Facts(
        job=plan.config.job,
        schedule=plan.config.schedule,
        signal=plan.signal,
        run=str(folder.path),
        machine=machine(),
        devices=plan.devices,
        layers=tuple(_layers(plan, stage) for stage in range(plan.stages)),
        graph=_graph(plan),
        total_steps=plan.total_steps,
        virtual=plan.is_virtual,
        baseline=baseline,
        notes=plan.notes,
    )


def _layers(plan: Plan, stage: int) -> str:
    """Say which layers a stage has."""
    groups = plan.groups_of(stage)
    if isinstance(plan.layers[0].wiring, Wires):
        return "nodes " + "; ".join(", ".join(layer.name for layer in group) for group in groups)
    return "layers " + ", ".join(f"{group[0].name} to {group[-1].name}" for group in groups)


def _graph(plan: Plan) -> tuple[StageNodes, ...]:
    """Return the nodes of each group, if the model is a graph."""
    wires = plan.layers[0].wiring
    if not isinstance(wires, Wires):
        return ()
    found: list[StageNodes] = []
    for group, size in enumerate(plan.cut):
        start = sum(plan.cut[:group])
        places = range(start, start + size)
        nodes = tuple((wires.names[place], *dict.fromkeys(_used(wires, place))) for place in places)
        owner = owner_of(plan.config.schedule, group, stages=plan.stages)
        assert owner is not None, "each group of a cut is some stage's"
        below = tuple(map(str, wires.crossing(start + size).values))
        found.append(StageNodes(stage=owner, nodes=nodes, below=below))
    return tuple(found)


def _used(wires: Wires, place: int) -> list[str]:
    """Return the nodes that one uses."""
    return [node_of(name) + (EARLIER if name in wires.time.names else "") for name in wires.inputs[place]]


class Showing:
    """Shows a run, from the first sample to its end."""

    def __init__(self, monitor: Monitor, folder: RunFolder, console: Console, view: str) -> None:
        self._monitor = monitor
        self._folder = folder
        self._console = console
        self._lines = Lines(console)
        self._said = 0
        self._updated = math.inf
        self._viewer: int | None = None
        main = threading.current_thread() is threading.main_thread()
        self._live = main and view != "lines" and is_usable(console)
        self._terminal = save() if self._live else None
        self._tstp: Any = None

    def update(self, samples: Sequence[Sample | None], moments: Sequence[Sequence[Moment]]) -> None:
        """Take in a sample of each stage and what it did since the last one, and let everybody know."""
        now = time.monotonic()
        resumed = now - self._updated > STOPPED
        if resumed:
            self._monitor.forget()
        self._updated = now
        self._monitor.take(now, samples)
        self._monitor.see(moments)
        state = self._monitor.state()
        self._publisher.send(state)
        self._recording.add(now, samples, self._monitor, resumed=resumed)
        if not self._is_watched():
            self._say_notes()
            self._lines.show(state)

    def __enter__(self) -> Self:
        if self._live:
            self._tstp = signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # the view stops us, once the terminal is right
            self._viewer = fork(partial(self._view, os.getpid()), tied=False)  # while there is but one thread
        try:
            self._publisher = Publisher(self._folder.path)
        except BaseException:
            self._end_viewer(0.0)
            raise
        self._recording = Recording(self._folder.path, self._monitor.facts)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:
            self._monitor.reason = "failed"
        state = self._monitor.state()
        self._publisher.send(state)
        self._recording.close(self._monitor.reason)
        if self._recording.failed is not None:
            self._monitor.note(f"the recording is not complete: {self._recording.failed.strerror}")
        watched = self._is_watched()
        self._end_viewer(LAST_FRAME)
        self._publisher.close()
        self._say_notes()
        if not watched:
            self._lines.show(state, last=True)

    def _view(self, launcher: int) -> int:
        die_with(launcher, signal.SIGTERM)
        return watch(self._folder.path, self._console, ours=True)

    def _is_watched(self) -> bool:
        """Return whether somebody sees the view: it is there, and we are not in the background."""
        return self._has_viewer() and is_ours()

    def _has_viewer(self) -> bool:
        """Return whether the view is still there; if it died, set the terminal right."""
        if self._viewer is None:
            return False
        pid, status = os.waitpid(self._viewer, os.WNOHANG)
        if pid:
            self._viewer = None
            signal.signal(signal.SIGTSTP, self._tstp)
            if status and is_ours():
                restore(self._terminal)
        return self._viewer is not None

    def _end_viewer(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while self._has_viewer():
            if time.monotonic() > deadline:
                assert self._viewer is not None
                os.kill(self._viewer, signal.SIGKILL)
            time.sleep(0.01)

    def _say_notes(self) -> None:
        """Print what has been said since, unless a view shows it."""
        for line in self._monitor.new_notes(self._said):
            say(self._console, line)
        self._said = self._monitor.noted
