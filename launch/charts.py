"""Charts as SVG, for the report: lines and timelines, drawn with the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from html import escape

from .gantt import Moment

__all__ = ["Series", "draw_bars", "draw_lines", "draw_timeline"]

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 72, 12, 10, 44
HALF_A_LETTER = 5
FEW = 15
"""Points up to which each is shown: one alone would not be seen."""
MOST_SPANS = 2000
"""Of a timeline's spans, the longest so many are drawn: some 250 KB."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    name: str
    points: Points


def draw_lines(series: Sequence[Series], *, x: str) -> str:
    """Return a chart of lines with axes, and a legend if there are several."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return '<p class="quiet">nothing was measured</p>'
    xs = [point[0] for one in drawn for point in one.points]
    ys = [point[1] for one in drawn for point in one.points]
    across, up = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT), _Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    body = [_grid(across, up), _label(x, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4)]
    for number, one in enumerate(drawn):
        places = [(f"{across.place(a):.1f}", f"{up.place(b):.1f}") for a, b in one.points]
        path = " ".join(f"{left},{top}" for left, top in places)
        title = f"<title>{escape(one.name)}</title>"
        body.append(f'<polyline class="line s{number % 8} d{number // 8}" points="{path}">{title}</polyline>')
        if len(places) <= FEW:
            body += [f'<circle class="dot s{number % 8}" cx="{left}" cy="{top}" r="3.5"/>' for left, top in places]
    legend = "".join(f'<span class="key s{n % 8}">{escape(one.name)}</span>' for n, one in enumerate(drawn))
    chart = _svg("".join(body), HEIGHT, f"course over {x}")
    return f'{chart}<p class="legend">{legend}</p>' if len(drawn) > 1 else chart


def draw_bars(counts: Sequence[tuple[int, int]], *, x: str, y: str) -> str:
    """Return a chart with a bar for each value and its count."""
    if not counts:
        return '<p class="quiet">nothing was measured</p>'
    first, last = min(value for value, _ in counts), max(value for value, _ in counts)
    up = _Axis(0, max(count for _, count in counts), HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    body = [_ticks_up(up), _label(f"{y} over {x}", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4)]
    for value, count in counts:
        left, top = LEFT + (value - first) * step, up.place(count)
        place = f'x="{left + step * 0.1:.1f}" y="{top:.1f}"'
        size = f'width="{step * 0.8:.1f}" height="{HEIGHT - BOTTOM - top:.1f}"'
        body.append(f'<rect class="fill" {place} {size}><title>{value}: {count}</title></rect>')
        if last - first < 24:
            body.append(_label(str(value), left + step / 2, HEIGHT - BOTTOM + 18))
    return _svg("".join(body), HEIGHT, f"{y} over {x}")


def draw_timeline(moments: Sequence[Sequence[Moment]], begin: int, end: int) -> str:
    """Return a row for each stage with its spans, between two times."""
    row = 26
    height = row * len(moments) + 28
    scale = (WIDTH - LEFT - RIGHT) / max(end - begin, 1)
    body: list[str] = []
    inside = [
        (min(stop, end) - max(start, begin), stage, number)
        for stage, of_stage in enumerate(moments)
        for number, (start, stop, _, _) in enumerate(of_stage)
    ]
    drawn = {(stage, number) for length, stage, number in nlargest(MOST_SPANS, inside) if length > 0}
    for stage, of_stage in enumerate(moments):
        body.append(_label(f"stage {stage}", LEFT - 6, row * stage + 17, "end"))
        for number, (start, stop, step, name) in enumerate(of_stage):
            if (stage, number) in drawn:
                left, right = max(start, begin), min(stop, end)
                place = f'x="{LEFT + (left - begin) * scale:.2f}" y="{row * stage + 3}"'
                size = f'width="{max((right - left) * scale, 0.2):.2f}" height="{row - 6}"'
                title = f"{name}, step {step}: {(stop - start) / 1e6:.2f} ms"
                body.append(f'<rect class="t-{name}" {place} {size}><title>{title}</title></rect>')
    for tick in _ticks(0, (end - begin) / 1e6):
        body.append(_tick(f"{tick:g} ms", LEFT + tick * 1e6 * scale, height - 8))
    return _svg("".join(body), height, "timeline of some steps")


class _Axis:
    """From values to places."""

    def __init__(self, least: float, most: float, start: float, end: float) -> None:
        if most <= least:
            half = max(0.5, abs(least) * 1e-6)
            least, most = least - half, most + half
        self.ticks = _ticks(least, most)
        self.least, self.most = min(least, self.ticks[0]), max(most, self.ticks[-1])
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        return self._start + (value - self.least) / (self.most - self.least) * (self._end - self._start)


def _ticks(least: float, most: float) -> list[float]:
    """Return about five round values between two."""
    raw = max(most - least, 1e-12) / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw)
    first = math.ceil(least / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(most / step + 1e-9) + 1)] or [least, most]


def _grid(across: _Axis, up: _Axis) -> str:
    ticks = [_tick(f"{tick:g}", across.place(tick), HEIGHT - BOTTOM + 18) for tick in across.ticks]
    return _ticks_up(up) + "".join(ticks)


def _tick(text: str, x: float, y: float) -> str:
    """Return a label below an axis, moved in from the edge if it would be cut there."""
    return _label(text, min(x, WIDTH - HALF_A_LETTER * len(text)), y)


def _ticks_up(up: _Axis) -> str:
    parts: list[str] = []
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_label(f"{tick:g}", LEFT - 6, y + 4, "end"))
    return "".join(parts)


def _label(text: str, x: float, y: float, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(body: str, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
