"""Shapes and figures: what the dashboard draws with, in Unicode or ASCII."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

__all__ = ["ASCII", "GLYPHS", "Glyphs", "percent", "queue", "runs_of", "short", "size", "sparkline"]


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The shapes of bars, arrows and states."""

    useful: str
    tax: str
    idle: str
    locked: str
    done: str
    left: str
    spark: str
    rising: str
    falling: str
    flat: str
    states: dict[str, str]
    more: str
    dot: str


GLYPHS = Glyphs(
    "█", "▒", "·", "│", "━", "─", "▁▂▃▄▅▆▇█", "↗", "↘", "→",
    {"running": "▶", "waits": "◷",
     "stopped": "‖", "finished": "■", "ended": "□", "lost": "✗", "starting": "…"}, "⋮", "·",
)  # fmt: skip
ASCII = Glyphs(
    "#", "/", ".", "|", "=", "-", "_.-=^", "+", "-", "=",
    {"running": ">", "waits": "w",
     "stopped": "!", "finished": "#", "ended": "e", "lost": "x", "starting": "."}, ":", "-",
)  # fmt: skip


def sparkline(points: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """Return the points as a line of bars, between their own least and most."""
    points = points[-width:] if len(points) <= 2 * width else points[:: len(points) // width][-width:]
    if not points:
        return ""
    least, most = min(points), max(points)
    scale = (len(glyphs.spark) - 1) / (most - least) if most > least else 0.0
    return "".join(glyphs.spark[round((point - least) * scale)] for point in points)


def runs_of(shapes: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield shapes and their colours, those that are alike in one piece: pieces are what drawing takes time for."""
    for (shape, colour), same in groupby(shapes):
        yield shape * len(list(same)), colour


def queue(pair: tuple[int, int]) -> str:
    return f"{pair[0]}/{pair[1]}" if pair[1] else "-"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def short(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.0e}"


def size(count: int) -> str:
    left = float(count)
    for unit in ("B", "K", "M"):
        if left < 1000:
            return f"{left:.0f}{unit}"
        left /= 1024
    return f"{left:.1f}G"
