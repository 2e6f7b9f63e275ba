"""The dashboard: draws a run's state as lines of text, for any width and height. Pure: it knows no screen and no clock.

    digits  ━━━━━━━━━━━━━━─────────────  step 400/800  eta 0:00:10  28,800 samples/s
    1.80x lockstep (measured) · accuracy 0.9412 · loss 0.2642

    stage  device   █useful ▒tax │locked  useful   tax  idle   cosine  state
    0      cpu      ███│████████████▒···     80%    5%   15%   0.60 ↗  ▶ running

What there is no room for is left out, the least important columns first; when there are more stages than lines, the
middle is folded and the stage that idles most is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from textwrap import wrap

from rich.text import Text

from .causes import CAUSE_WORDS, CAUSES, IDLE_COLOUR, TAX_COLOUR, USEFUL_COLOUR
from .gantt import draw_gantt
from .monitor import RunState, StageState

__all__ = ["ASCII", "GLYPHS", "View", "draw"]

LOCKED, WARNING, QUIET = "bold #f0e442", "#d55e00", IDLE_COLOUR
SHORT_WORDS = {"waits for a batch": "no batch", "waits for room": "no room", "waits for a gradient": "no gradient"}
SHORTEST_BAR = 10
NARROW = 50
BAR = "bar"
TREND = 0.02
MOST_NOTES = 3


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The shapes that it draws with."""

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
    {"running": "▶", "waits": "◷", "stopped": "‖", "finished": "■", "lost": "✗", "starting": "…"}, "⋮", "·",
)  # fmt: skip
ASCII = Glyphs(
    "#", "/", ".", "|", "=", "-", "_.-=^", "+", "-", "=",
    {"running": ">", "waits": "w", "stopped": "!", "finished": "#", "lost": "x", "starting": "."}, ":", "-",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How to look at a run."""

    width: int
    height: int
    glyphs: Glyphs = GLYPHS
    keys: str = ""
    """The last line: what the keys do."""
    detail: int | None = None
    """The stage to show in detail."""
    timeline: bool = False
    """Whether to show the last steps as a timeline."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of stages."""

    heading: str
    width: int
    rank: int
    """Columns of a high rank go first when there is no room."""
    cell: Callable[[RunState, int, Glyphs], Text]
    left: bool = False


def draw(state: RunState, view: View) -> list[Text]:
    """Return the lines of a screen: at most as many as it is high, none longer than it is wide."""
    if view.width < NARROW:
        return _clip([_one_line(state, view.glyphs)], view)
    head = _header(state, view)
    foot = _footer(state, view)
    room = max(view.height - len(head) - len(foot), 1)
    if view.timeline:
        body = draw_gantt(state.recent, view.width)
    else:
        body = _table(state, view, room) if view.detail is None else _detail(state, view, view.detail)
    return _clip([*head, *body[:room], *foot], view)


def _clip(lines: Sequence[Text], view: View) -> list[Text]:
    clipped = [line.copy() for line in lines[: view.height]]
    for line in clipped:
        line.truncate(view.width)
    return clipped


def _one_line(state: RunState, glyphs: Glyphs) -> Text:
    words = [state.facts.job, _steps(state)]
    if state.speedup is not None:
        words.append(f"{state.speedup:.2f}x")
    worst = _worst(state)
    words.append(state.reason or f"{worst} idles {state.stages[worst].idle_share:.0%}")
    return Text(" ".join(words))


def _header(state: RunState, view: View) -> list[Text]:
    words = [_steps(state)]
    if state.reason is not None:
        words.append(state.reason)
    elif state.eta is not None:
        words.append(f"eta {timedelta(seconds=round(state.eta))}")
    words.append(f"{state.samples_per_second:,.0f} samples/s")
    figures = "  ".join(words)
    if view.width >= 80:
        job = f"{state.facts.job}  "
        room = view.width - len(job) - len(figures) - 2
        first = Text.assemble((job, "bold"), _progress(state, room, view.glyphs), f"  {figures}")
        return [first, _comparison(state, view), Text()]
    room = view.width - len(state.facts.job) - 2 - len(figures)
    head = Text.assemble((state.facts.job, "bold"), "  ", figures) if room >= 0 else Text(figures)
    return [head, _comparison(state, view), Text()]


def _comparison(state: RunState, view: View) -> Text:
    """Return the line of what the lock would cost, and what came out of the last evaluation."""
    facts, parts = state.facts, list[Text]()
    baseline = facts.baseline
    if baseline is not None and state.speedup is not None:
        parts.append(Text.assemble((f"{state.speedup:.2f}x {baseline.schedule}", "bold"), f" ({baseline.source})"))
    elif baseline is not None:
        parts.append(Text(f"{baseline.schedule} {baseline.samples_per_second:,.0f} samples/s ({baseline.source})"))
    else:
        parts.append(Text(f"{facts.schedule}, no baseline", style=QUIET))
    parts += [Text(f"{name} {value:.4f}") for name, value in state.metrics.items() if name != "loss"]
    loss = state.stages[-1].loss
    if loss is not None:
        parts.append(Text(f"loss {loss:.4f}"))
    if facts.virtual:
        parts.append(Text("virtual devices", style=WARNING))
    dot = f" {view.glyphs.dot} "
    while len(parts) > 1 and len(Text(dot).join(parts)) > view.width:
        parts.pop()
    return Text(dot).join(parts)


def _progress(state: RunState, room: int, glyphs: Glyphs) -> Text:
    total = state.facts.total_steps
    if room < 4 or not total:
        return Text(" " * max(room, 0))
    done = min(round(room * state.step / total), room)
    return Text.assemble((glyphs.done * done, USEFUL_COLOUR), (glyphs.left * (room - done), QUIET))


def _steps(state: RunState) -> str:
    total = state.facts.total_steps
    return f"step {state.step:,}" if total is None else f"step {state.step:,}/{total:,}"


def _footer(state: RunState, view: View) -> list[Text]:
    said = [line for note in state.notes[-2:] for line in wrap(note, view.width)]
    notes = [Text(line) for line in said[-MOST_NOTES:]]
    keys = [Text(view.keys, style=QUIET)] if view.keys else []
    return [Text(), *notes, *keys] if view.height >= 12 else keys


def _table(state: RunState, view: View, room: int) -> list[Text]:
    columns = _columns_for(state, view.width)
    bar = view.width - sum(column.width + 2 for column in columns if column.heading != BAR)
    heading = Text("  ").join(_heading(column, bar, view.glyphs) for column in columns)
    heading.stylize(QUIET)
    return [heading, *(_row(state, item, columns, bar, view) for item in _folded(state, room - 1))]


def _heading(column: Column, bar: int, glyphs: Glyphs) -> Text:
    if column.heading != BAR:
        return _fit(Text(column.heading), column.width, column.left)
    legends = (
        f"useful {glyphs.useful} tax {glyphs.tax} idle {glyphs.idle} locked {glyphs.locked}",
        f"{glyphs.useful}useful {glyphs.tax}tax {glyphs.locked}locked",
        "time",
    )
    return _fit(Text(next(legend for legend in legends if len(legend) <= bar)), bar, True)


def _row(state: RunState, item: int | str, columns: Sequence[Column], bar: int, view: View) -> Text:
    if isinstance(item, str):
        return Text(f"{view.glyphs.more} {item}", style=QUIET)
    cells = [
        _bar(state, item, bar, view.glyphs)
        if column.heading == BAR
        else _fit(column.cell(state, item, view.glyphs), column.width, column.left)
        for column in columns
    ]
    return Text("  ").join(cells)


def _folded(state: RunState, room: int) -> list[int | str]:
    """Return the stages to show: all, or the first and the last ones and a word on those between."""
    count = len(state.stages)
    if count <= room:
        return list(range(count))
    if room < 3:
        return [_say_folded(state, range(count))]
    above, below = room // 2, room - 1 - room // 2
    return [*range(above), _say_folded(state, range(above, count - below)), *range(count - below, count)]


def _say_folded(state: RunState, stages: range) -> str:
    worst = max(stages, key=lambda index: state.stages[index].idle_share)
    stage = state.stages[worst]
    return f"{len(stages)} more; stage {worst} idles most: {stage.idle_share:.0%}, for {CAUSE_WORDS[stage.cause]}"


def _worst(state: RunState) -> int:
    return max(range(len(state.stages)), key=lambda index: state.stages[index].idle_share)


def _bar(state: RunState, index: int, width: int, glyphs: Glyphs) -> Text:
    stage = state.stages[index]
    useful = round(stage.useful * width)
    tax = min(round((stage.useful + stage.tax) * width), width) - useful
    shapes = [(glyphs.useful, USEFUL_COLOUR)] * useful + [(glyphs.tax, TAX_COLOUR)] * tax
    shapes += [(glyphs.idle, IDLE_COLOUR)] * (width - len(shapes))
    baseline = state.facts.baseline
    if baseline is not None and index < len(baseline.useful):
        shapes[min(round(baseline.useful[index] * width), width - 1)] = (glyphs.locked, LOCKED)
    return Text.assemble(*shapes)


def _fit(text: Text, width: int, left: bool) -> Text:
    """Return the text in just so many columns."""
    text.truncate(width)
    pad = " " * (width - text.cell_len)
    return text + pad if left else Text(pad) + text


def _columns_for(state: RunState, width: int) -> list[Column]:
    """Return the columns that fit beside a bar, which has at least a fifth of the width."""
    columns = [column for column in COLUMNS if column.heading != "gpu" or any(s.gpu for s in state.stages)]
    least = max(SHORTEST_BAR, width // 5)
    while sum(column.width + 2 for column in columns if column.heading != BAR) + least > width:
        columns.remove(max(columns, key=lambda column: column.rank))
    return columns


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


def sparkline(points: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """Return the points as a line of bars, between their own least and most."""
    points = points[-width:] if len(points) <= 2 * width else points[:: len(points) // width][-width:]
    if not points:
        return ""
    least, most = min(points), max(points)
    scale = (len(glyphs.spark) - 1) / (most - least) if most > least else 0.0
    return "".join(glyphs.spark[round((point - least) * scale)] for point in points)


def _queue(pair: tuple[int, int]) -> str:
    return f"{pair[0]}/{pair[1]}" if pair[1] else "-"


def _loss_cell(state: RunState, index: int, glyphs: Glyphs) -> Text:
    stage = state.stages[index]
    if stage.loss is None:
        return Text("-", style=QUIET)
    return Text(f"{sparkline(stage.losses, 12, glyphs):>12} {_short(stage.loss):>7}")


def _short(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.0e}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "K", "M"):
        if size < 1000:
            return f"{size:.0f}{unit}"
        size /= 1024
    return f"{size:.1f}G"


def _of(cell: Callable[[StageState], str]) -> Callable[[RunState, int, Glyphs], Text]:
    return lambda state, index, glyphs: Text(cell(state.stages[index]))


COLUMNS = (
    Column("stage", 5, 0, lambda state, index, glyphs: Text(str(index)), left=True),
    Column("device", 7, 6, lambda state, index, glyphs: Text(state.facts.devices[index]), left=True),
    Column(BAR, 0, -1, lambda state, index, glyphs: Text()),
    Column("useful", 6, 4, _of(lambda stage: f"{stage.useful:.0%}")),
    Column("tax", 4, 5, _of(lambda stage: f"{stage.tax:.0%}")),
    Column("idle", 4, 1, _of(lambda stage: f"{stage.idle_share:.0%}")),
    Column("idle mostly for", 15, 7, _of(lambda stage: CAUSE_WORDS[stage.cause]), left=True),
    Column("in", 5, 10, _of(lambda stage: _queue(stage.queue_in))),
    Column("out", 5, 11, _of(lambda stage: _queue(stage.queue_out))),
    Column("steps/s", 7, 9, _of(lambda stage: f"{stage.steps_per_second:.1f}")),
    Column("loss", 20, 12, _loss_cell),
    Column("cosine", 7, 3, _cosine_cell),
    Column("lag", 7, 8, _of(lambda stage: f"{stage.lag_p50} {stage.lag_max}" if stage.lag_max else "-")),
    Column("norm", 7, 13, _of(lambda stage: "-" if stage.gradient_norm is None else _short(stage.gradient_norm))),
    Column("memory", 6, 14, _of(lambda stage: _bytes(stage.memory) if stage.memory else "-")),
    Column("gpu", 9, 15, _of(lambda stage: f"{stage.gpu[0]:.0%} {stage.gpu[1]:.0f}C" if stage.gpu else "-")),
    Column("state", 13, 2, _state_cell, left=True),
)


def _detail(state: RunState, view: View, index: int) -> list[Text]:
    """Return all that is known of one stage."""
    stage, facts, width = state.stages[index], state.facts, view.width
    rows = [
        ("stage", f"{index} on {facts.devices[index]}: {facts.layers[index]}"),
        ("state", stage.state + (f", for {stage.state_seconds:.1f} s" if stage.state_seconds >= 1 else "")),
        ("steps", f"{stage.steps:,}, {stage.steps_per_second:.1f} a second"),
        ("queues", f"in {_queue(stage.queue_in)}, out {_queue(stage.queue_out)}, unanswered {stage.unanswered}"),
        ("lag", f"p50 {stage.lag_p50}, most {stage.lag_max}" if stage.lag_max else "none"),
        ("loss", _course(stage.loss, stage.losses, width, view.glyphs)),
        ("cosine", _course(stage.cosine, stage.cosines, width, view.glyphs)),
        ("error", "-" if stage.relative_error is None else f"{stage.relative_error:.2f} of the gradient's length"),
        ("norm", "-" if stage.gradient_norm is None else _short(stage.gradient_norm)),
        ("memory", _bytes(stage.memory) if stage.memory else "-"),
    ]
    lines = [Text.assemble((f"{name:<8}", QUIET), value) for name, value in rows]
    shares = [("useful", stage.useful), ("tax", stage.tax), *((cause, stage.idle.get(cause, 0.0)) for cause in CAUSES)]
    room = max(width - 32, 5)
    for name, share in shares:
        shape, style = {"useful": (view.glyphs.useful, USEFUL_COLOUR), "tax": (view.glyphs.tax, TAX_COLOUR)}.get(
            name, (view.glyphs.idle, IDLE_COLOUR)
        )
        words = name if name in ("useful", "tax") else f"idle for {CAUSE_WORDS[name]}"
        lines.append(Text.assemble(f"{words:<22}{share:>6.1%}  ", (shape * round(share * room), style)))
    return lines


def _course(value: float | None, points: Sequence[float], width: int, glyphs: Glyphs) -> str:
    return "-" if value is None else f"{_short(value)}  {sparkline(points, max(width - 20, 10), glyphs)}"
