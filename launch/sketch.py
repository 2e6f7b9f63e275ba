"""Draws a model that is a graph: which stage has which nodes, what they use, and what crosses between stages.

stage 0  enc1 <- input
         pool <- enc1
   |     enc1 [4x14x14], pool [4x7x7]
stage 1  enc2 <- pool
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any

from rich.text import Text

from .causes import IDLE_COLOUR as QUIET
from .shapes import Glyphs

__all__ = ["EARLIER", "StageNodes", "nodes_from", "sketch", "sketch_svg"]

EARLIER = ":earlier"
"""Behind the name of a node that is used a batch later; no node has it in its name."""

NAME, LONGEST = 9, 17
COLUMN, ROW, BOX, HIGH, HEAD, LANE, BEND, BACK = 190, 54, 130, 30, 34, 12, 44, 22
"""Of the picture: a group's column, a node's row and box, what is above the first one, how lines go below and back."""


@dataclass(frozen=True, slots=True)
class StageNodes:
    """The nodes of one group."""

    stage: int
    nodes: tuple[tuple[str, ...], ...]
    """Of each its name, and the names of those that it uses."""
    below: tuple[str, ...]
    """What it passes on, with shapes."""


def nodes_from(values: Mapping[str, Any]) -> StageNodes:
    """Return what `asdict` gave, also after it went through JSON."""
    return StageNodes(values["stage"], tuple(map(tuple, values["nodes"])), tuple(values["below"]))


def sketch(groups: Sequence[StageNodes], width: int, glyphs: Glyphs) -> list[Text]:
    """Return the graph as lines."""
    lines: list[Text] = []
    for group in groups:
        for number, (name, *used) in enumerate(group.nodes):
            head = f"stage {group.stage}" if number == 0 else ""
            first, *rest = _wrapped(f"{name} <- {', '.join(map(_said, used))}", width)
            lines.append(Text.assemble(f"{head:<{NAME}}", (first[: len(name)], "bold"), (first[len(name) :], QUIET)))
            lines += [Text(" " * NAME + part, style=QUIET) for part in rest]
        mark = f"   {glyphs.locked}"
        lines += [Text(f"{mark:<{NAME}}{part}", style=QUIET) for part in _wrapped(", ".join(group.below), width)]
    return lines


def _said(wanted: str) -> str:
    """Return how a text calls what a node uses."""
    return f"{wanted.removesuffix(EARLIER)} (earlier)" if wanted.endswith(EARLIER) else wanted


def _wrapped(line: str, width: int) -> list[str]:
    return wrap(line, max(width - NAME, 10), subsequent_indent="  ")


def sketch_svg(groups: Sequence[StageNodes]) -> str:
    """Return the graph as SVG: a column for each group, a box for each node, a line for each use."""
    places = {
        name: (column * COLUMN + (COLUMN - BOX) // 2, HEAD + row * ROW)
        for column, group in enumerate(groups, start=1)
        for row, (name, *_) in enumerate(group.nodes)
    }
    places["input"] = ((COLUMN - BOX) // 2, HEAD)
    longest = max(len(group.nodes) for group in groups)
    height = HEAD + ROW * longest + (LANE if len(groups) > 1 else 0)
    width = COLUMN * (len(groups) + 1)
    body = [_stage(f"stage {group.stage}", column, height) for column, group in enumerate(groups, start=1)]
    body += [line for group in groups for line in _lines(group, places)]
    body += [_box(name, *place) for name, place in places.items()]
    label = "the model's graph, a column for each group of nodes"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def _stage(title: str, column: int, height: int) -> str:
    middle = column * COLUMN + COLUMN / 2
    edge = f'<line class="grid" x1="{column * COLUMN}" x2="{column * COLUMN}" y1="4" y2="{height - 8}"/>'
    return f'{edge}<text x="{middle}" y="16" text-anchor="middle">{title}</text>'


def _box(name: str, x: float, y: float) -> str:
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 2]}.."
    label = f"<title>{escape(name)}</title>{escape(short)}"
    text = f'<text x="{x + BOX / 2}" y="{y + HIGH / 2 + 4}" text-anchor="middle">{label}</text>'
    return f'<rect class="node" x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="5"/>{text}'


def _lines(group: StageNodes, places: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """Yield a line for each use: across from another column, down within one, back by its other side."""
    for name, *used in group.nodes:
        x, y = places[name]
        for wanted in used:
            source, is_earlier = wanted.removesuffix(EARLIER), wanted.endswith(EARLIER)
            from_x, from_y = places[source]
            if is_earlier:
                path = _back(x + BOX, from_y + HIGH / 2, y + HIGH / 2)
            elif from_x == x:
                path = _down(x, from_y, y)
            else:
                start, a, b = from_x + BOX, from_y + HIGH / 2, y + HIGH / 2
                lane = max((place[1] for place in places.values() if from_x < place[0] < x), default=None)
                path = _across(start, a, x, b) if lane is None else _under(start, a, x, b, lane + HIGH + LANE)
            kind = "edge earlier" if is_earlier else "edge"
            yield f'<path class="{kind}" d="{path}"><title>{escape(source)} to {escape(name)}</title></path>'


def _down(x: float, a: float, b: float) -> str:
    """Return the path to a box further down in the same column."""
    if b - a <= ROW:
        return f"M{x + BOX / 2},{a + HIGH} L{x + BOX / 2},{b}"
    side, a, b = x - 14, a + HIGH / 2, b + HIGH / 2
    return f"M{x},{a} C{side},{a} {side},{b} {x},{b}"


def _back(side: float, a: float, b: float) -> str:
    """Return the path to a box of the same column by its right side; it leaves a box low and comes back high."""
    a, b, bend = a + HIGH / 4, b - HIGH / 4, side + BACK
    return f"M{side},{a} C{bend},{a} {bend},{b} {side},{b}"


def _across(start: float, a: float, end: float, b: float) -> str:
    """Return the path from one column to the next."""
    half = (end - start) / 2
    return f"M{start},{a} C{start + half},{a} {end - half},{b} {end},{b}"


def _under(start: float, a: float, end: float, b: float, lane: float) -> str:
    """Return the path to a column further on, below the boxes in between."""
    down = f"C{start + BEND},{a} {start},{lane} {start + BEND},{lane}"
    up = f"C{end},{lane} {end - BEND},{b} {end},{b}"
    return f"M{start},{a} {down} L{end - BEND},{lane} {up}"
