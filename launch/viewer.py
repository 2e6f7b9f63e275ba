"""The viewer: shows a run on a terminal, live or from its recording, and obeys keys. Training does not know of it."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from .broadcast import Subscriber, is_measured
from .dashboard import Page, View, cut_off, draw
from .monitor import RunState
from .recording import RecordingError, readable, replay
from .shapes import ASCII, GLYPHS, Glyphs
from .terminal import Terminal, is_ours, is_usable

__all__ = ["Viewer", "find_run", "find_with", "playback", "watch"]

FRAME = 0.3
"""Seconds after which a view is drawn again in any case; the run says something new a little more often."""
DIGITS = "0123456789"
PAGES: dict[str, Page] = {"g": "timeline", "n": "nodes"}
SILENCE = 3.0
"""Seconds without a word from the run after which a viewer says so."""
KEYS = ("q leave", "h help", "up/down stage", "g timeline", "p pause", "s save")
SHORT_KEYS = ("q leave", "h help", "jk stage", "g time", "p pause", "s save")
HELP = """\
 q            leave the view; training goes on
 up, down     (or k, j) a stage in detail; escape: all stages
 0 .. 9       the stage of that number
 g            the last steps as a timeline
 n            the nodes of a model that is a graph
 p            pause the view, and go on
 s            save what is shown as SVG in the run folder
{control}
 useful       forward, backward, optimizer: what plain backprop does too
 tax          predictors, batches run again: the price of not waiting
 idle         the rest, and what for
 locked       how useful the stage is under the locked baseline
 cosine       of predicted and later gradient; 1 is the same direction
 lag          steps until a gradient is learnt from: median, most
"""
OURS = """\
 Ctrl-C       end the run in order: weights are saved
 Ctrl-Z       stop everything; fg goes on
"""
ITS_OWN = """\
 Ctrl-C       leave the view, too
 Ctrl-Z       stop the view; fg goes on
"""


class Viewer:
    """What is shown of a run.

    Args:
        terminal: Where.
        run: The run folder.
        ours: Whether the terminal is the run's own, whose Ctrl-C reaches it.
    """

    def __init__(self, terminal: Terminal, run: Path, *, ours: bool = False) -> None:
        self.terminal = terminal
        self._control = OURS if ours else ITS_OWN
        self.run = run
        self.left = False
        self.glyphs = glyphs_for(terminal.console)
        self._stage: int | None = None
        self._help = False
        self._page: Page = "stages"
        self._paused: RunState | None = None
        self._said = ""

    @property
    def paused(self) -> bool:
        """Whether the view stands still."""
        return self._paused is not None

    def show(self, state: RunState) -> None:
        """Show a state, or what the keys asked for in its place."""
        self.terminal.show(self.lines(self._paused or state))

    def lines(self, state: RunState) -> list[Text]:
        width, height = self.terminal.size
        if self._help:
            return cut_off([Text(line) for line in _help(self._control, width)], height)
        keys = self._said or ("paused; p goes on" if self._paused else _keys_that_fit(width))
        stage = None if self._stage is None else min(self._stage, len(state.stages) - 1)
        view = View(width=width, height=height, glyphs=self.glyphs, keys=keys, detail=stage, page=self._page)
        return draw(state, view)

    def obey(self, keys: list[str], state: RunState) -> None:
        """Do what keys ask for."""
        for key in keys:
            self._said = ""
            if key == "q":
                self.left = True
            elif key in "h?":
                self._help = not self._help
            elif key == "escape":
                self._help, self._page, self._stage = False, "stages", None
            elif (page := PAGES.get(key)) is not None:
                self._page = "stages" if self._page == page else page
            elif key in ("up", "down", "k", "j"):
                self._move(-1 if key in ("up", "k") else 1, len(state.stages))
            elif key in DIGITS:
                self._page = "stages"
                self._stage = min(int(key), len(state.stages) - 1)
            elif key == "p":
                self._paused = None if self._paused else state
            elif key == "s":
                self._said = self._save(self._paused or state)

    def _move(self, by: int, stages: int) -> None:
        self._page = "stages"
        if self._stage is None:
            self._stage = 0 if by > 0 else stages - 1
        else:
            self._stage = (self._stage + by) % stages

    def _save(self, state: RunState) -> str:
        """Save what is shown as a picture, and say where."""
        file = self.run / f"view-{state.step}.svg"
        try:
            save_svg(self.lines(state), self.terminal.size[0], file)
        except OSError as error:
            return f"{file} cannot be written: {error.strerror}"
        return f"saved {file}"


def _help(control: str, width: int) -> list[str]:
    """Return the help in lines of at most that width."""
    lines = HELP.format(control=control).splitlines()
    return [part for line in lines for part in wrap(line, width, subsequent_indent=" " * 14) or [""]]


def _keys_that_fit(width: int) -> str:
    """Return as many keys as there is room for; help has the others."""
    shown = list(KEYS) if len("  ".join(KEYS)) <= width else list(SHORT_KEYS)
    while len("  ".join(shown)) > width and len(shown) > 1:
        shown.pop()
    return "  ".join(shown)


def glyphs_for(console: Console) -> Glyphs:
    """Return the shapes that the console can show."""
    return GLYPHS if console.encoding.startswith("utf") else ASCII


def _print(state: RunState, console: Console) -> None:
    """Print a state once, as plain lines."""
    view = View(width=console.width, height=max(console.height, 50), glyphs=glyphs_for(console))
    for line in draw(state, view):
        console.print(line, no_wrap=True, overflow="crop")


def save_svg(lines: list[Text], width: int, file: Path) -> None:
    """Write the lines as a picture."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True, color_system="truecolor")
        for line in lines:
            console.print(line, no_wrap=True, overflow="crop")
        console.save_svg(str(file), title="stepahead")


def watch(run: Path, console: Console, *, once: bool = False, ours: bool = False) -> int:
    """Show a run that goes on in another process until it ends or the user leaves; return the exit code.

    Args:
        once: Show it as it is now, as plain lines.
        ours: Whether this view belongs to the run's own terminal, which then tells how it ended.
    """
    with Subscriber(run) as subscriber:
        if is_measured(run):
            console.print("the baseline is being measured; the run begins after that", soft_wrap=True)
            while is_measured(run):
                time.sleep(FRAME)
        state = _first_state(subscriber, math.inf if ours else SILENCE)
        if state is None:
            console.print(f"the run in {run} says nothing: it has ended, or was killed", markup=False, soft_wrap=True)
            return 1
        if not once:
            state = _watch(run, console, subscriber, state, ours=ours)
    if once or (state.reason is not None and not ours):
        _print(state, console)
    return 0


def _first_state(subscriber: Subscriber, patience: float) -> RunState | None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        state = subscriber.newest()
        if state is not None:
            return state
        time.sleep(0.02)
    return None


def _watch(run: Path, console: Console, subscriber: Subscriber, state: RunState, *, ours: bool) -> RunState:
    heard = time.monotonic()
    due = heard
    with Terminal(console) as terminal:
        viewer = Viewer(terminal, run, ours=ours)
        while not (viewer.left or terminal.ended or state.reason is not None):
            now = time.monotonic()
            if now >= due and not terminal.away:
                silence = [f"no word from the run for {now - heard:.0f} s; q leaves"] if now - heard > SILENCE else []
                viewer.show(replace(state, notes=[*state.notes, *silence]))
                due = now + FRAME
            keys = terminal.wait(FRAME, subscriber.fileno())
            viewer.obey(keys, state)
            newest = subscriber.newest()
            if newest is not None:
                state, heard = newest, time.monotonic()
            if newest is not None or keys:  # the socket wakes us for less than a message too
                due = 0.0
    return state


def playback(run: Path, console: Console, speed: float) -> int:
    """Show a recorded run, so many times as fast as it was."""
    states = _paced(run, speed)
    with readable(f"the recording in {run} has something that cannot be shown"):
        if is_usable(console) and is_ours():
            state = _play(run, console, states, speed)
        else:
            ((_, state),) = deque(states, maxlen=1)
        _print(state, console)
    return 0


def _play(run: Path, console: Console, states: Iterator[tuple[float, RunState]], speed: float) -> RunState:
    """Show one state after another, and return the one that was shown last."""
    shown_at, state = next(states)
    left = 0.0
    with Terminal(console) as terminal:
        viewer = Viewer(terminal, run)
        for now, coming in states:
            left += (now - shown_at) / speed
            while (left > 0 or viewer.paused) and not viewer.left and not terminal.ended:
                since = time.monotonic()
                viewer.show(state)
                viewer.obey(terminal.wait(min(left, FRAME) if left > 0 else FRAME), state)
                if not viewer.paused and not terminal.away:
                    left -= min(time.monotonic() - since, FRAME)  # it may have been stopped for long
            if viewer.left or terminal.ended:
                break
            shown_at, state = now, coming
    return state


def _paced(run: Path, speed: float) -> Iterator[tuple[float, RunState]]:
    if not speed > 0:
        raise RecordingError(f"the speed is {speed:g}; it must be above 0")
    found = False
    for now, monitor in replay(run):
        found = True
        yield now, monitor.state()
    if not found:
        raise RecordingError(f"nothing was recorded in {run}")


def find_run(name: Path | None, fits: Callable[[Path], bool], what: str) -> Path:
    """Return the run folder of that name, or the newest one under runs/ that fits; `what` says how it must be."""
    if name is not None:
        if not name.is_dir():
            raise RecordingError(f"there is no run folder {name}")
        return name
    configs = sorted(Path("runs").glob("*/config.toml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for config in configs:
        if fits(config.parent):
            return config.parent
    raise RecordingError(f"no run under runs/ {what}; name the folder of one")


def find_with(name: Path | None, file: str) -> Path:
    """Return the run folder of that name, or the newest one that has a file."""
    return find_run(name, lambda run: (run / file).exists(), f"has a {file}")
