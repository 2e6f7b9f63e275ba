"""The dashboard: draws a run's state as lines of text, for any width and height. Pure: it knows no screen and no clock.

    digits  ━━━━━━━━━━━━━━─────────────  step 400/800  eta 0:00:10  28,800 samples/s
    1.80x lockstep (measured) · accuracy 0.9412 · loss 0.2642

    stage  device   █useful ▒tax │locked  useful   tax  idle   cosine  state
    0      cpu      ███│████████████▒···     80%    5%   15%   0.60 ↗  ▶ running

Below that are the last things that were said, and what the keys do. In place of the table there may be all that is
known of one stage, a timeline of the last steps, or the model's graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from textwrap import wrap
from typing import Literal

from rich.text import Text

from .causes import CAUSE_WORDS, CAUSES, IDLE_COLOUR, TAX_COLOUR, USEFUL_COLOUR
from .gantt import draw_gantt
from .monitor import RunState, StageState
from .shapes import GLYPHS, Glyphs, percent, queue, short, size, sparkline
from .sketch import sketch
from .table import QUIET, WARNING, draw_table, worst_of

__all__ = ["Page", "View", "cut_off", "draw"]

Page = Literal["stages", "timeline", "nodes"]

NARROW = 50
HIGH = 16
"""Lines from which on a narrow screen has one for the progress."""
MOST_NOTES = 3
LONGEST_NAME = 24


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
    page: Page = "stages"
    """All of them or the one in detail, the last steps as a timeline, or the nodes of a model that is a graph."""


def draw(state: RunState, view: View) -> list[Text]:
    """Return the lines of a screen: at most as many as it is high, none longer than it is wide."""
    if view.width < NARROW:
        return _clip([_one_line(state, view.glyphs)], view)
    head = _header(state, view)
    foot = _footer(state, view)
    room = max(view.height - len(head) - len(foot), 1)
    if view.page == "timeline":
        body = draw_gantt(state.recent, view.width, room)
    elif view.page == "nodes":
        body = sketch(state.facts.graph, view.width, view.glyphs) or [Text("the model is a chain of layers", QUIET)]
    elif view.detail is not None:
        body = _detail(state, view, view.detail)
    else:
        body = draw_table(state, view.width, room, view.glyphs)
    return _clip([*head, *cut_off(body, room), *foot], view)


def cut_off(lines: list[Text], room: int) -> list[Text]:
    """Return the lines that there is room for, and in place of the last one how many there is none for."""
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], Text(f"{len(lines) - room + 1} more lines, in a higher window", style=QUIET)]


def _clip(lines: Sequence[Text], view: View) -> list[Text]:
    clipped = [line.copy() for line in lines[: view.height]]
    for line in clipped:
        line.truncate(view.width)
    return clipped


def _one_line(state: RunState, glyphs: Glyphs) -> Text:
    words = [_name(state), _steps(state)]
    if state.speedup is not None:
        words.append(f"{state.speedup:.2f}x")
    worst = worst_of(state, range(len(state.stages)))
    idle = state.stages[worst].idle_share
    words.append(state.reason or ("" if idle is None else f"{worst} idles {percent(idle)}"))
    return Text(" ".join(words).rstrip())


def _header(state: RunState, view: View) -> list[Text]:
    words = [_steps(state)]
    if state.reason is not None:
        words.append(state.reason)
    elif state.eta is not None:
        words.append(f"eta {timedelta(seconds=round(state.eta))}")
    words.append(f"{state.samples_per_second:,.0f} samples/s")
    figures = "  ".join(words)
    if view.width >= 80:
        job = f"{_name(state)}  "
        room = view.width - len(job) - len(figures) - 2
        first = Text.assemble((job, "bold"), _progress(state, room, view.glyphs), f"  {figures}")
        return [first, *_comparison(state, view, pace=False), Text()]
    while len(words) > 1 and len(_name(state)) + 2 + len("  ".join(words)) > view.width:
        words.pop()
    head = Text.assemble((_name(state), "bold"), "  ", "  ".join(words))
    progress = [_progress(state, view.width, view.glyphs)] if view.height >= HIGH and state.facts.total_steps else []
    return [head, *progress, *_comparison(state, view, pace=figures not in head.plain), Text()]


def _name(state: RunState) -> str:
    """Return the job's name; of a file the last part, and of a long one its end."""
    name = state.facts.job.rpartition("/")[2]
    return name if len(name) <= LONGEST_NAME else f"..{name[2 - LONGEST_NAME :]}"


def _comparison(state: RunState, view: View, *, pace: bool) -> list[Text]:
    """Return what the lock would cost, what came out of the last evaluation, and the pace, if asked: a line, or two."""
    facts = state.facts
    parts = [Text(f"{state.samples_per_second:,.0f} samples/s")] if pace else []
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
    dot = Text(f" {view.glyphs.dot} ")
    lines: list[list[Text]] = [parts[:1]]
    for part in parts[1:]:
        if len(dot.join([*lines[-1], part])) > view.width:
            lines.append([])
        lines[-1].append(part)
    return [dot.join(line) for line in lines[: 2 if view.height >= HIGH else 1]]


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


def _error(stage: StageState) -> str:
    """Say how far guesses are off, and what steps on them miss where that is known."""
    if stage.relative_error is None:
        return "-"
    steps = "" if stage.missed is None else f"; steps miss {stage.missed:.2f}"
    return f"{stage.relative_error:.2f} of the gradient's length{steps}"


def _further(stage: StageState) -> list[tuple[str, str]]:
    """Say how good guesses of inputs, and of what comes after a window, are."""
    rows: list[tuple[str, str]] = []
    if stage.inputs_error is not None:
        rows.append(("inputs", f"guessed to {stage.inputs_error:.2f} of their length"))
    if stage.windows_cosine is not None:
        rows.append(("windows", f"cosine {stage.windows_cosine:.2f} at their ends"))
    return rows


def _detail(state: RunState, view: View, index: int) -> list[Text]:
    """Return all that is known of one stage."""
    stage, facts, width = state.stages[index], state.facts, view.width
    rows = [
        ("stage", f"{index} on {facts.devices[index]}: {facts.layers[index]}"),
        ("state", stage.state + (f", for {stage.state_seconds:.1f} s" if stage.state_seconds >= 1 else "")),
        ("steps", f"{stage.steps:,}, {stage.steps_per_second:.1f} a second"),
        ("queues", f"in {queue(stage.queue_in)}, out {queue(stage.queue_out)}"),
        ("kept", f"{size(stage.held)} for gradients to come, of {stage.unanswered}" if stage.unanswered else "-"),
        ("lag", f"p50 {stage.lag_p50}, most {stage.lag_max}" if stage.lag_max else "none"),
        ("loss", _course(stage.loss, stage.losses, width, view.glyphs)),
        ("cosine", _course(stage.cosine, stage.cosines, width, view.glyphs)),
        ("error", _error(stage)),
        *_further(stage),
        ("norm", "-" if stage.gradient_norm is None else short(stage.gradient_norm)),
        ("memory", size(stage.memory) if stage.memory else "-"),
    ]
    lines = [Text.assemble((f"{name:<8}", QUIET), value) for name, value in rows]
    if stage.useful is None or stage.tax is None:
        return [*lines, Text("where its time goes is not known yet, or telemetry is off", style=QUIET)]
    shares = [("useful", stage.useful), ("tax", stage.tax), *((cause, stage.idle[cause]) for cause in CAUSES)]
    room = max(width - 34, 5)
    for name, share in shares:
        shape, style = {"useful": (view.glyphs.useful, USEFUL_COLOUR), "tax": (view.glyphs.tax, TAX_COLOUR)}.get(
            name, (view.glyphs.idle, IDLE_COLOUR)
        )
        words = name if name in ("useful", "tax") else f"idle for {CAUSE_WORDS[name]}"
        lines.append(Text.assemble(f"{words:<24}{share:>6.1%}  ", (shape * round(share * room), style)))
    return lines


def _course(value: float | None, points: Sequence[float], width: int, glyphs: Glyphs) -> str:
    return "-" if value is None else f"{short(value)}  {sparkline(points, max(width - 20, 10), glyphs)}"
