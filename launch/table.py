"""The table of stages: a row for each, with a bar of where its time goes, and whatever else there is room for.

    stage  device   █useful ▒tax │locked  useful   tax  idle   cosine  state
    0      cpu      ███│████████████▒···     80%    5%   15%   0.60 ↗  ▶ running
           idle mostly for a batch  lag 2 3  steps/s 40.0  in 1/4  out 2/2

Columns that do not fit go below their row while there are lines for that, and then are left out. When there are more
stages than lines the middle is folded, but for the stage in it that idles most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from .causes import CAUSE_WORDS, IDLE_COLOUR, TAX_COLOUR, USEFUL_COLOUR
from .monitor import RunState, StageState
from .shapes import Glyphs, percent, queue, runs_of, short, size, sparkline

__all__ = ["QUIET", "WARNING", "draw_table", "worst_of"]

LOCKED, WARNING, QUIET = "bold #f0e442", "#d55e00", IDLE_COLOUR
SHORT_WORDS = {"waits for a batch": "no batch", "waits for room": "no room", "waits for a gradient": "no gradient"}
SHORTEST_BAR = 10
BAR = "bar"
TREND = 0.02
INDENT = 7
LEAST_FOR_WORST = 5
"""Lines that it takes to show the worst of the folded stages too."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of stages."""

    heading: str
    width: int
    rank: int
    """Columns of a high rank go first when there is no room."""
    cell: Callable[[RunState, int, Glyphs], Text]
    left: bool = False


def draw_table(state: RunState, width: int, room: int, glyphs: Glyphs) -> list[Text]:
    """Return the table in at most so many lines."""
    columns, left_out = _columns_for(state, width)
    bar = width - sum(column.width + 2 for column in columns if column.heading != BAR)
    compared = state.facts.baseline is not None
    heading = Text("  ").join(_heading(column, bar, glyphs, compared) for column in columns)
    heading.stylize(QUIET)
    lines = [heading]
    below = max((room - 1) // len(state.stages) - 1, 0)
    for item in _folded(state, room - 1):
        if isinstance(item, str):
            lines.append(Text(f"{glyphs.more} {item}", style=QUIET))
        else:
            lines.append(_row(state, item, columns, bar, glyphs))
            if below:
                lines += _below(state, item, left_out, width, glyphs)[:below]
    worst = _say_worst(state, worst_of(state, range(len(state.stages))))
    if worst and left_out and not below and len(lines) < room and len(state.stages) < room:
        lines.append(Text(f"{'':{INDENT}}{worst}", style=QUIET))
    return lines[:room]


def _heading(column: Column, bar: int, glyphs: Glyphs, compared: bool) -> Text:
    if column.heading != BAR:
        return _fit(Text(column.heading), column.width, column.left)
    legends = (
        f"useful {glyphs.useful} tax {glyphs.tax} idle {glyphs.idle}" + f" locked {glyphs.locked}" * compared,
        f"{glyphs.useful}useful {glyphs.tax}tax" + f" {glyphs.locked}locked" * compared,
        "time",
    )
    return _fit(Text(next(legend for legend in legends if len(legend) <= bar)), bar, True)


def _row(state: RunState, index: int, columns: Sequence[Column], bar: int, glyphs: Glyphs) -> Text:
    cells = [
        _bar(state, index, bar, glyphs)
        if column.heading == BAR
        else _fit(column.cell(state, index, glyphs), column.width, column.left)
        for column in columns
    ]
    return Text("  ").join(cells)


def _below(state: RunState, index: int, columns: Sequence[Column], width: int, glyphs: Glyphs) -> list[Text]:
    """Return the lines below a row: what has no column, the most important first, at the same places in each row."""
    lines: list[list[str | tuple[str, str]]] = []
    left = 0
    for column in sorted(columns, key=lambda column: column.rank):
        needed = len(column.heading) + 1 + column.width
        left -= 2 + needed
        if left < 0:
            lines.append([" " * INDENT])
            left = width - INDENT - needed
        else:
            lines[-1].append("  ")
        value = column.cell(state, index, glyphs).plain.strip()
        lines[-1] += [(f"{column.heading} ", QUIET), f"{value:<{column.width}}"]
    return [Text.assemble(*line) for line in lines]


def _folded(state: RunState, room: int) -> list[int | str]:
    """Return the stages to show: all, or the first and the last ones, the worst of those between, and how many go."""
    count = len(state.stages)
    if count <= room:
        return list(range(count))
    if room < 3:
        return [_say_folded(state, range(count))]
    above, below = room // 2, room - 1 - room // 2
    if room < LEAST_FOR_WORST:
        return [*range(above), _say_folded(state, range(above, count - below)), *range(count - below, count)]
    above, below = above - 1, below - 1
    middle = range(above, count - below)
    worst = worst_of(state, middle)
    before, after = worst - above, count - below - worst - 1
    said = _joined(f"{before} more" if before else "", _say_worst(state, worst))
    rows = [*range(above), said, worst, f"{after} more" if after else "", *range(count - below, count)]
    return [row for row in rows if row != ""]


def _say_folded(state: RunState, stages: range) -> str:
    return _joined(f"{len(stages)} more", _say_worst(state, worst_of(state, stages)))


def _say_worst(state: RunState, worst: int) -> str:
    """Say what the worst stage idles for, if that is known."""
    stage = state.stages[worst]
    return "" if stage.cause is None else f"worst {worst}: idle {percent(stage.idle_share)}, for {_cause(stage)}"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _cause(stage: StageState) -> str:
    return "-" if stage.cause is None else CAUSE_WORDS[stage.cause]


def worst_of(state: RunState, stages: range) -> int:
    """Return the stage that idles most."""
    return max(stages, key=lambda index: state.stages[index].idle_share or 0.0)


def _bar(state: RunState, index: int, width: int, glyphs: Glyphs) -> Text:
    stage = state.stages[index]
    if stage.useful is None or stage.tax is None:
        return Text(" " * width)
    useful = round(stage.useful * width)
    tax = min(round((stage.useful + stage.tax) * width), width) - useful
    shapes = [(glyphs.useful, USEFUL_COLOUR)] * useful + [(glyphs.tax, TAX_COLOUR)] * tax
    shapes += [(glyphs.idle, IDLE_COLOUR)] * (width - len(shapes))
    baseline = state.facts.baseline
    if baseline is not None and index < len(baseline.useful):
        shapes[min(round(baseline.useful[index] * width), width - 1)] = (glyphs.locked, LOCKED)
    return Text.assemble(*runs_of(shapes))


def _fit(text: Text, width: int, left: bool) -> Text:
    """Return the text in just so many columns."""
    text.truncate(width)
    pad = " " * (width - text.cell_len)
    return text + pad if left else Text(pad) + text


def _columns_for(state: RunState, width: int) -> tuple[list[Column], list[Column]]:
    """Return the columns that fit beside a bar, which has at least a fifth of the width, and those that do not."""
    columns = [column for column in COLUMNS if column.heading != "gpu" or any(s.gpu for s in state.stages)]
    left_out: list[Column] = []
    least = max(SHORTEST_BAR, width // 5)
    while sum(column.width + 2 for column in columns if column.heading != BAR) + least > width:
        left_out.append(max(columns, key=lambda column: column.rank))
        columns.remove(left_out[-1])
    return columns, left_out


def _state_cell(state: RunState, index: int, glyphs: Glyphs) -> Text:
    stage = state.stages[index]
    kind = stage.state.split()[0]
    bad = kind in ("stopped", "lost")
    word = SHORT_WORDS.get(stage.state, stage.state)
    return Text(f"{glyphs.states[kind]} {word}", style=WARNING if bad else "")


def _cosine_cell(state: RunState, index: int, glyphs: Glyphs) -> Text:
    stage = state.stages[index]
    if stage.cosine is None:
        return Text("-", style=QUIET)
    trend = _trend(stage.cosines)
    arrow = glyphs.rising if trend > TREND else glyphs.falling if trend < -TREND else glyphs.flat
    return Text(f"{stage.cosine:.2f} {arrow}")


def _trend(points: Sequence[float]) -> float:
    """Return how much the last quarter of the points is above the quarter before it."""
    quarter = max(len(points) // 4, 1)
    last, before = points[-quarter:], points[-2 * quarter : -quarter]
    return sum(last) / len(last) - sum(before) / len(before) if before else 0.0


def _loss_cell(state: RunState, index: int, glyphs: Glyphs) -> Text:
    stage = state.stages[index]
    if stage.loss is None:
        return Text("-", style=QUIET)
    return Text(f"{sparkline(stage.losses, 12, glyphs):>12} {short(stage.loss):>7}")


def _of(cell: Callable[[StageState], str]) -> Callable[[RunState, int, Glyphs], Text]:
    return lambda state, index, glyphs: Text(cell(state.stages[index]))


COLUMNS = (
    Column("stage", 5, 0, lambda state, index, glyphs: Text(str(index)), left=True),
    Column("device", 7, 6, lambda state, index, glyphs: Text(state.facts.devices[index]), left=True),
    Column(BAR, 0, -1, lambda state, index, glyphs: Text()),
    Column("useful", 6, 4, _of(lambda stage: percent(stage.useful))),
    Column("tax", 4, 5, _of(lambda stage: percent(stage.tax))),
    Column("idle", 4, 1, _of(lambda stage: percent(stage.idle_share))),
    Column("idle mostly for", 15, 7, _of(_cause), left=True),
    Column("in", 5, 10, _of(lambda stage: queue(stage.queue_in))),
    Column("out", 5, 11, _of(lambda stage: queue(stage.queue_out))),
    Column("steps/s", 7, 9, _of(lambda stage: f"{stage.steps_per_second:.1f}")),
    Column("loss", 20, 12, _loss_cell),
    Column("cosine", 7, 3, _cosine_cell),
    Column("lag", 7, 8, _of(lambda stage: f"{stage.lag_p50} {stage.lag_max}" if stage.lag_max else "-")),
    Column("norm", 7, 13, _of(lambda stage: "-" if stage.gradient_norm is None else short(stage.gradient_norm))),
    Column("memory", 6, 14, _of(lambda stage: size(stage.memory) if stage.memory else "-")),
    Column("gpu", 9, 15, _of(lambda stage: f"{stage.gpu[0]:.0%} {stage.gpu[1]:.0f}C" if stage.gpu else "-")),
    Column("state", 13, 2, _state_cell, left=True),
)
