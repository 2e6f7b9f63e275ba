"""The page of a comparison: the table, where each schedule's time goes, and loss against time and samples."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .causes import CAUSE_HEADS
from .charts import Series
from .page import Cell, card, page, row, table, thin

__all__ = ["write_page"]

FILE = "report.html"
HEADS = ("schedule", "M", "samples/s", "quartiles", "x lock", "x best", "to loss", "activations", "sent", "its core")
LEGEND = """M: micro-batches; x lock, x best: samples a second over lockstep and over the best locked schedule; to loss:
seconds; activations: MB at most, of the first and the last stage; sent: MB a step; its core: the share of the time in
which a worker could have run and did. Solid: useful, hatched: tax, empty: idle."""
STAGE_HEADS = ("stage", "useful", "tax", "idle", "mostly for", "activations")
MEGA = 1e6


def write_page(folder: Path, comparison: Mapping[str, Any]) -> Path:
    """Write the page of what compare.json has, and return where it is."""
    file = folder / FILE
    file.write_text(page(f"{comparison['job']}: schedules", _body(comparison)), encoding="utf-8")
    return file


def _body(comparison: Mapping[str, Any]) -> str:
    kind = " on <b>virtual</b> devices" if comparison["virtual"] else ""
    title = f"<h1>{escape(comparison['job'])}</h1><p class='quiet'>schedules side by side, "
    title += f"{comparison['stages']} stages{kind}</p>"
    words = "".join(f"<li>{escape(sentence)}</li>" for sentence in comparison["verdict"])
    rows = [row(HEADS, _cells(index, each)) for index, each in enumerate(comparison["rows"])]
    errors = "".join(
        f"<p><b>{escape(each['schedule'])}</b>: {escape(each['error'])}</p>"
        for each in comparison["rows"]
        if each["error"]
    )
    parts = [title, f"<div class='card'><ul>{words}</ul></div>", "<h2>Schedules</h2>"]
    parts.append(f"<div class='card'>{table(HEADS, rows, 'wide')}<p class='legend'>{LEGEND}</p></div>{errors}")
    return "".join([*parts, _curves(comparison), _stages(comparison), _about(comparison)])


def _cells(index: int, each: Mapping[str, Any]) -> list[Cell]:
    def cell(key: str, form: str, scale: float = 1.0) -> Cell:
        value = each[key]
        if value is None:
            return ("", None)
        return (f"{value / scale if scale != 1.0 else value:{form}}", f"rows.{index}.{key}")

    spread = each["spread"]
    peak = each["peak_activation_bytes"]
    return [
        (escape(each["schedule"]), None),
        cell("microbatches", "d"),
        cell("samples_per_second", ",.0f"),
        (f"{spread[0]:,.0f} to {spread[1]:,.0f}" if spread else "", None),
        cell("ratio_to_lockstep", ".2f"),
        cell("ratio_to_best_locked", ".2f"),
        cell("seconds_to_target", ".1f"),
        (f"{peak[0] / MEGA:.1f}, {peak[-1] / MEGA:.1f}" if peak else "", None),
        cell("bytes_per_step", ".2f", MEGA),
        cell("contention", ".0%"),
    ]


def _curves(comparison: Mapping[str, Any]) -> str:
    drawn = [each for each in comparison["rows"] if each["loss_curve"]]
    if not drawn:
        return ""
    over_time = [Series(_name(each), thin([(at, loss) for at, _, loss in each["loss_curve"]])) for each in drawn]
    over_samples = [Series(_name(each), thin([(n, loss) for _, n, loss in each["loss_curve"]])) for each in drawn]
    charts = card("training loss over seconds", over_time, "seconds")
    charts += card("training loss over samples", over_samples, "samples")
    return f"<h2>Loss</h2><div class='grid2'>{charts}</div>"


def _stages(comparison: Mapping[str, Any]) -> str:
    """Return a bar for each stage of each schedule, and the figures."""
    parts: list[str] = []
    for index, each in enumerate(comparison["rows"]):
        if not each["useful"]:
            continue
        bars = "".join(
            f'<div class="stage"><span>stage {stage}</span><div class="bar"><i class="useful" style="width:'
            f'{useful:.2%}"></i><i class="tax" style="width:{tax:.2%}"></i></div></div>'
            for stage, (useful, tax) in enumerate(zip(each["useful"], each["tax"], strict=True))
        )
        rows = [row(STAGE_HEADS, _stage_cells(index, stage, each)) for stage in range(len(each["useful"]))]
        parts.append(f"<div class='card'><h3>{escape(_name(each))}</h3>{bars}{table(STAGE_HEADS, rows)}</div>")
    return f"<h2>Where each stage's time went</h2><div class='grid2'>{''.join(parts)}</div>" if parts else ""


def _stage_cells(index: int, stage: int, each: Mapping[str, Any]) -> list[Cell]:
    cells: list[Cell] = [(str(stage), None)]
    cells += [(f"{each[part][stage]:.1%}", f"rows.{index}.{part}.{stage}") for part in ("useful", "tax")]
    idle, peak = each["idle"][stage], each["peak_activation_bytes"]
    most = max(idle, key=lambda cause: idle[cause], default=None)
    cells += [(f"{sum(idle.values()):.1%}", None), (CAUSE_HEADS.get(most, "") if most else "", None)]
    return [*cells, (f"{peak[stage] / MEGA:.1f} MB" if stage < len(peak) else "", None)]


def _about(comparison: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in comparison["versions"].items())
    notes = "".join(f"<p>{escape(note)}</p>" for note in comparison["notes"])
    facts = f"<p>{escape(comparison['machine'])}</p><p>{escape(versions)}</p>{notes}"
    return f"<h2>Machine</h2><div class='card'>{facts}</div>"


def _name(each: Mapping[str, Any]) -> str:
    count = each["microbatches"]
    return str(each["schedule"]) if count is None else f"{each['schedule']} M={count}"
