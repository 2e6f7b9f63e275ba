"""The timeline of the last steps as lines of text: a row for each stage, a letter for what it did most in that moment.

0  ffffbbbbooppffffbbbboopp
1  ..ffffbbbboo..ffffbbbboo
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap

from rich.text import Text

from .causes import IDLE_COLOUR, TAX_COLOUR, USEFUL_COLOUR
from .shapes import runs_of

__all__ = ["LETTERS", "Moment", "draw_gantt", "last_steps"]

Moment = tuple[int, int, int, str]
"""When a span began and ended (ns), at which step, and its name."""
LETTERS = {
    "forward": ("f", USEFUL_COLOUR),
    "backward": ("b", USEFUL_COLOUR),
    "optimizer": ("o", USEFUL_COLOUR),
    "predict": ("p", TAX_COLOUR),
    "learn": ("l", TAX_COLOUR),
    "replay": ("r", TAX_COLOUR),
    "send": ("s", IDLE_COLOUR),
    "evaluate": ("e", IDLE_COLOUR),
    "wait_input": (".", IDLE_COLOUR),
    "wait_credit": (".", IDLE_COLOUR),
    "wait_gradient": (".", IDLE_COLOUR),
}
NO_BREAK = "\N{NO-BREAK SPACE}"
STEPS = 5
"""Steps to show."""


def draw_gantt(recent: Sequence[Iterable[Moment]], width: int, height: int | None = None) -> list[Text]:
    """Return the timeline of the last steps that every stage has been through, in at most so many lines."""
    window = _window(recent)
    if window is None:
        return [Text("no steps to show yet, or telemetry is off")]
    first, last, begin, end = window
    room = max(width - 6, 10)
    lines = [Text(f"steps {first} to {last}, {(end - begin) / 1e6:,.1f} ms", style="bold")]
    rows = [Text(f"{stage:<4}  ") + _row(moments, begin, end, room) for stage, moments in enumerate(recent)]
    legend = [f"{letter}{NO_BREAK}{name}" for name, (letter, _) in LETTERS.items() if letter != "."]
    words = wrap("  ".join([*legend, f".{NO_BREAK}waits"]), width)
    below = [Text(), *(Text(line.replace(NO_BREAK, " "), style=IDLE_COLOUR) for line in words)]
    return [*lines, *_folded(rows, None if height is None else max(height - 1 - len(below), 1)), *below]


def _folded(rows: list[Text], room: int | None) -> list[Text]:
    """Return the rows, and where there is no room for all, the first and the last ones."""
    if room is None or len(rows) <= room:
        return rows
    above, below = room // 2, max(room - 1 - room // 2, 0)
    return [*rows[:above], Text(f"{len(rows) - above - below} more", style=IDLE_COLOUR), *rows[len(rows) - below :]]


def last_steps(recent: Sequence[Iterable[Moment]]) -> list[list[Moment]]:
    """Return the spans that the timeline of the last steps shows."""
    window = _window(recent)
    if window is None:
        return [[] for _ in recent]
    *_, begin, end = window
    return [[moment for moment in moments if moment[1] > begin and moment[0] < end] for moments in recent]


def _window(recent: Sequence[Iterable[Moment]]) -> tuple[int, int, int, int] | None:
    """Return the first and the last of the last steps that every stage has been through, and from when to when."""
    last = min((max((moment[2] for moment in moments), default=-1) for moments in recent), default=-1)
    if last < 1:
        return None
    inside = [moment for moments in recent for moment in moments if last - STEPS < moment[2] <= last]
    first = min(moment[2] for moment in inside)
    return first, last, min(moment[0] for moment in inside), max(moment[1] for moment in inside)


def _row(moments: Iterable[Moment], begin: int, end: int, room: int) -> Text:
    width = (end - begin) / room
    shares: list[dict[str, float]] = [{} for _ in range(room)]
    for start, stop, _, name in moments:
        first, past = (max(start, begin) - begin) / width, (min(stop, end) - begin) / width
        for cell in range(int(first), min(int(past) + 1, room)):
            covered = min(past, cell + 1) - max(first, cell)
            if covered > 0:
                shares[cell][name] = shares[cell].get(name, 0.0) + covered
    cells: list[tuple[str, str]] = []
    for share in shares:
        name = max(share, key=lambda span: share[span]) if share else ""
        cells.append(LETTERS.get(name, (" ", "")))
    return Text.assemble(*runs_of(cells))
