"""The report of a run: `report.html`, one page that needs nothing else, made from what is in the run folder."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .causes import CAUSE_HEADS, CAUSES
from .charts import Series, draw_bars, draw_timeline
from .gantt import STEPS, Moment
from .monitor import facts_from
from .page import Cell, card, page, row, table, thin
from .recording import FILE as RECORDING
from .recording import RecordingError, lines_of, readable, replay
from .sketch import sketch_svg
from .trace import FILE as TRACE

__all__ = ["FILE", "write_report"]

FILE = "report.html"
PREDICTOR = ("cosine", "relative_error", "sign_error")
STAGE_HEADS = ("stage", "device", "useful", "tax", "idle", *CAUSE_HEADS.values(), "parameters", "activations")
PREDICTOR_HEADS = ("stage", "cosine", "relative error", "sign error")


def write_report(run: Path) -> Path:
    """Write the report of a run folder from its files, and return where it is."""
    with readable(f"the files in {run} have something that cannot be shown"):
        text = _page(run)
    file = run / FILE
    file.write_text(text, encoding="utf-8")
    return file


def _page(run: Path) -> str:
    summary = _summary(run)
    recorded = _recorded(run)
    lines = [line for line in recorded if "samples" in line]
    _add_what_was_seen(summary, lines)
    moments = _moments(run, len(summary["stages"]))
    parts = [_head(summary, run), _stages(summary), _graph(recorded), _steps(moments), _curves(lines)]
    parts += [_predictors(summary, lines), _lags(summary), _machine(summary, run, recorded)]
    return page(summary["job"], "".join(parts))


def _add_what_was_seen(summary: dict[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Give stages that did not come to their end the shares that they were last seen to have."""
    for index, stage in enumerate(summary["stages"]):
        sample = lines[-1]["samples"][index] if lines and "useful" not in stage else None
        total = sum(sample["seconds"].values()) if sample else 0.0
        if sample and total > 0:
            shares = {name: seconds / total for name, seconds in sample["seconds"].items()}
            idle = {cause: shares[cause] for cause in CAUSES}
            stage |= {"useful": shares["useful"], "tax": shares["tax"], "idle": idle}


def _head(summary: Mapping[str, Any], run: Path) -> str:
    baseline = summary["baseline"]
    figures = [("steps", f"{summary['steps']:,}", "steps")]
    figures.append(("seconds", f"{summary['wall_seconds']:.1f}", "wall_seconds"))
    figures.append(("samples a second", f"{summary['samples_per_second']:,.0f}", "samples_per_second"))
    if summary["speedup"] is not None:
        source = f"over {baseline['schedule']} ({baseline['source']})"
        figures.insert(0, (source, f"{summary['speedup']:.2f}x", "speedup"))
    if summary["train_loss"] is not None:
        figures.append(("training loss", f"{summary['train_loss']:.4f}", "train_loss"))
    for name, value in summary["metrics"].items():
        if value is not None:
            figures.append((f"test {name}", f"{value:.4f}", f"metrics.{name}"))
    cards = "".join(
        f'<div class="figure"><b data-key="{escape(key)}">{text}</b><span>{escape(name)}</span></div>'
        for name, text, key in figures
    )
    virtual = " on <b>virtual</b> devices" if summary["virtual"] else ""
    parts = [summary["schedule"], f"signal {summary['signal']}", f"truth {summary.get('truth', 'off')}"]
    about = escape(", ".join(parts)) + virtual
    where = f"{escape(summary['exit_reason'])}; {escape(run.name)}"
    title = f"<h1>{escape(summary['job'])}</h1><p class='quiet'>{about}; {where}</p>"
    return f"{title}{_faults(summary)}<div class='figures'>{cards}</div>"


def _faults(summary: Mapping[str, Any]) -> str:
    """Return what went wrong, if anything did."""
    lines: list[str] = []
    for fault in summary.get("faults", ()):
        who = f"stage {fault['worker']}" if fault["worker"].isdigit() else f"the {fault['worker']} process"
        lines.append(f"{who}, after {fault['steps']} steps: {fault['what']}")
    return "".join(f"<p><b>{escape(line)}</b></p>" for line in lines)


def _stages(summary: Mapping[str, Any]) -> str:
    stages, baseline = summary["stages"], summary["baseline"]
    bars = [_bar(index, stage, baseline) for index, stage in enumerate(stages) if stage.get("useful") is not None]
    rows = [row for index, stage in enumerate(stages) for row in _stage_rows(index, stage, baseline)]
    legend = "solid: useful, hatched: tax, empty: idle" + ("; the line: useful under the lock" if baseline else "")
    chart = f"<div class='card'>{''.join(bars)}<p class='legend'>{legend}</p></div>" if bars else ""
    if any("useful" in stage and stage["useful"] is None for stage in stages):
        chart = "<p class='quiet'>Telemetry was off: where the time went is not known.</p>"
    return (
        f"<h2>Where each stage's time went</h2>{chart}"
        f"<div class='card' style='margin-top:1rem'>{table(STAGE_HEADS, rows, 'wide')}</div>"
    )


def _graph(recorded: Sequence[Mapping[str, Any]]) -> str:
    """Return the model's graph, if it is one."""
    groups = facts_from(recorded[0]["facts"]).graph if recorded else ()
    return f"<h2>The model's graph</h2><div class='card'>{sketch_svg(groups)}</div>" if groups else ""


def _bar(index: int, stage: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    locked = baseline["useful"][index] if baseline and index < len(baseline["useful"]) else None
    mark = "" if locked is None else f'<i class="mark" style="left:{min(locked, 0.995):.2%}"></i>'
    shape = f'<i class="useful" style="width:{stage["useful"]:.2%}"></i>'
    shape += f'<i class="tax" style="width:{stage["tax"]:.2%}"></i>'
    return f'<div class="stage"><span>stage {index}</span><div class="bar">{shape}{mark}</div></div>'


def _stage_rows(index: int, stage: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[str]:
    """Return what a stage did, and below it what it does under the lock, if that is known."""
    if "useful" not in stage:
        rest = f"<td colspan='{len(STAGE_HEADS) - 1}'>did not come to an end</td>"
        return [f"<tr><td data-head='stage'>{index}</td>{rest}</tr>"]
    rows = [row(STAGE_HEADS, _stage_cells(index, stage))]
    if baseline and index < len(baseline.get("idle", ())):
        rows.append(row(STAGE_HEADS, _locked_cells(index, baseline)))
    return rows


def _stage_cells(index: int, stage: Mapping[str, Any]) -> list[Cell]:
    cells: list[Cell] = [(str(index), None), (escape(stage["device"]), None)]
    if stage["useful"] is None:
        cells += [("-", None)] * (3 + len(CAUSES))
    else:
        cells += [(f"{stage[key]:.1%}", f"stages.{index}.{key}") for key in ("useful", "tax")]
        cells.append((f"{sum(stage['idle'].values()):.1%}", None))
        cells += [(f"{stage['idle'][cause]:.1%}", f"stages.{index}.idle.{cause}") for cause in CAUSES]
    if "parameters" not in stage:
        return [*cells, ("-", None), ("-", None)]
    cells.append((f"{stage['parameters']:,}", None))
    return [*cells, (f"{stage['peak_activation_bytes'] / 2**20:,.1f} MiB", None)]


def _locked_cells(index: int, baseline: Mapping[str, Any]) -> list[Cell]:
    """Return what a stage does under the lock."""
    useful, idle = baseline["useful"][index], baseline["idle"][index]
    cells: list[Cell] = [(f"{index} locked", None), ("", None), (f"{useful:.1%}", f"baseline.useful.{index}")]
    cells += [(f"{max(1 - useful - sum(idle.values()), 0.0):.1%}", None), (f"{sum(idle.values()):.1%}", None)]
    cells += [(f"{idle[cause]:.1%}", f"baseline.idle.{index}.{cause}") for cause in CAUSES]
    return [*cells, ("", None), ("", None)]


def _steps(moments: Sequence[Sequence[Moment]]) -> str:
    """Return the timeline of some steps in the middle of what was traced."""
    steps = [sorted({moment[2] for moment in of_stage if moment[3] == "forward"}) for of_stage in moments]
    common = sorted(set.intersection(*map(set, steps))) if steps and all(steps) else []
    if not common:
        return ""
    middle = common[len(common) // 2 :][:STEPS]
    inside = [moment for of_stage in moments for moment in of_stage if middle[0] <= moment[2] <= middle[-1]]
    chart = draw_timeline(moments, min(moment[0] for moment in inside), max(moment[1] for moment in inside))
    legend = "blue: forward, backward (lighter), optimizer (lightest); orange: predictor, "
    legend += "batches run again (lighter); grey: sends, evaluations"
    return (
        f"<h2>Steps {middle[0]} to {middle[-1]}</h2><div class='card'>{chart}<p class='legend'>{legend}. "
        f"All that was traced is in {TRACE}, for ui.perfetto.dev.</p></div>"
    )


def _curves(lines: Sequence[Mapping[str, Any]]) -> str:
    if not lines:
        return ""
    begun = lines[0]["time"]
    axes: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "steps": _step_of,
        "seconds": lambda line: float(line["time"] - begun),
    }
    charts = [card(f"training loss over {x}", [Series("loss", _course(lines, -1, "loss", axes[x]))], x) for x in axes]
    found = [(step, line["time"] - begun, metrics) for line in lines for step, metrics in line.get("evaluations", ())]
    for name in sorted({name for _, _, metrics in found for name in metrics if name != "loss"}):
        of_name = [(step, seconds, metrics[name]) for step, seconds, metrics in found if name in metrics]
        courses = {"steps": [(step, value) for step, _, value in of_name]}
        courses["seconds"] = [(seconds, value) for _, seconds, value in of_name]
        charts += [card(f"test {name} over {x}", [Series(name, thin(points))], x) for x, points in courses.items()]
    return f"<h2>Loss and metrics</h2><div class='grid2'>{''.join(charts)}</div>"


def _predictors(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    stages = range(len(summary["stages"]))
    series = [Series(f"stage {stage}", _course(lines, stage, "cosine", _step_of)) for stage in stages]
    if not any(one.points for one in series):
        return ""
    known = [(index, stage) for index, stage in enumerate(summary["stages"]) if stage.get("predictor")]
    rows = [row(PREDICTOR_HEADS, _predictor_cells(index, stage["predictor"])) for index, stage in known]
    chart = card("cosine of predicted and later gradient over steps", series, "steps")
    figures = f"<div class='card'>{table(PREDICTOR_HEADS, rows, 'wide')}</div>" if rows else ""
    return f"<h2>Predictors</h2><div class='grid2'>{chart}{figures}</div>"


def _predictor_cells(index: int, predictor: Mapping[str, float | None]) -> list[Cell]:
    figures = [(f"stages.{index}.predictor.{key}", predictor[key]) for key in PREDICTOR]
    return [(str(index), None), *(("-" if value is None else f"{value:.3f}", key) for key, value in figures)]


def _lags(summary: Mapping[str, Any]) -> str:
    cards: list[str] = []
    for index, stage in enumerate(summary["stages"]):
        if stage.get("lag"):
            counts = [(lag, count) for lag, count in stage["lag"]["counts"]]
            cards.append(f"<div class='card'><h3>stage {index}</h3>{draw_bars(counts, x='steps', y='gradients')}</div>")
    if not cards:
        return ""
    return f"<h2>Lag: steps until a gradient is learnt from</h2><div class='grid2'>{''.join(cards)}</div>"


def _machine(summary: Mapping[str, Any], run: Path, recorded: Sequence[Mapping[str, Any]]) -> str:
    machine = recorded[0]["facts"].get("machine", "") if recorded else ""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    try:
        config = (run / "config.toml").read_text()
    except OSError:
        config = "not there"
    weights = summary["weights_sha256"] or "not saved"
    facts = f"<p>{escape(machine)}</p><p>{escape(versions)}</p>"
    facts += f"<p class='quiet'>weights sha256 <span data-key='weights_sha256'>{weights}</span></p>"
    return f"<h2>Machine and settings</h2><div class='card'>{facts}<pre>{escape(config)}</pre></div>"


def _step_of(line: Mapping[str, Any]) -> float:
    last = line["samples"][-1]
    return float(last["steps"]) if last else 0.0


def _course(
    lines: Sequence[Mapping[str, Any]], stage: int, name: str, place: Callable[[Mapping[str, Any]], float]
) -> list[tuple[float, float]]:
    """Return a stage's figure over the run, where it is known."""
    samples = [(line, line["samples"][stage]) for line in lines]
    return thin([(place(line), sample[name]) for line, sample in samples if sample and sample[name] is not None])


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    except FileNotFoundError:
        rest = f"; stepahead playback {run} shows what was recorded" if (run / RECORDING).exists() else ""
        raise RecordingError(f"{run} has no summary.json: its launcher did not come to an end{rest}") from None
    except (OSError, ValueError) as error:
        raise RecordingError(f"{run} has no summary.json that can be read ({type(error).__name__})") from None
    if not isinstance(summary, dict) or not {"job", "stages", "metrics", "exit_reason"} <= summary.keys():
        raise RecordingError(f"{run / 'summary.json'} is no summary of a run")
    return summary


def _recorded(run: Path) -> list[dict[str, Any]]:
    """Return the lines of the recording; a run may have none."""
    if not (run / RECORDING).exists():
        return []
    for _ in replay(run):
        pass  # says what is wrong with it, if anything is
    return list(lines_of(run))


def _moments(run: Path, stages: int) -> list[list[Moment]]:
    """Return what was traced; a run may have no trace."""
    moments: list[list[Moment]] = [[] for _ in range(stages)]
    try:
        with gzip.open(run / TRACE, "rt") as file:
            events = json.load(file)["traceEvents"]
    except (OSError, ValueError, LookupError, EOFError, zlib.error):
        return moments
    for event in events:
        if event["ph"] == "X":
            begin = round(event["ts"] * 1e3)
            end = begin + round(event["dur"] * 1e3)
            moments[event["tid"]].append((begin, end, event["args"]["step"], event["name"]))
    return moments
