"""What a run says to people: how it begins, how it went, what went wrong."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from stepahead.workers import log_folder, newest_snapshot, stage_title

from .causes import CAUSE_WORDS
from .folder import RunFolder
from .plan import Plan
from .summary import death
from .supervisor import Loss, Outcome

__all__ = ["first_words", "last_words", "show_result"]

NARROW = 60


def first_words(plan: Plan, folder: RunFolder) -> list[str]:
    """Return the lines with which a run begins."""
    config = plan.config
    what = _what(plan)
    devices = ", ".join(_counted(plan.devices))
    head = [f"{config.job}: {plan.stages} stages on {devices}, {what}", f"run folder: {folder.path}"]
    return [*head, *(f"note: {note}" for note in plan.notes)]


def _what(plan: Plan) -> str:
    """Return whether stages wait; if not, what they step on, and what they do with the truth."""
    if plan.is_locked:
        cut = f", {plan.microbatches} micro-batches" if plan.microbatches > 1 else ""
        return f"locked ({plan.config.schedule}{cut})"
    use, period = plan.truth.use, plan.truth.period
    often = "" if use == "off" or period == 1 else f" of one batch in {period}"
    blocks = "" if plan.config.blocks is None else f" in {plan.config.blocks} blocks"
    return f"decoupled{blocks}, signal {plan.signal}, truth {use}{often}"


def show_result(summary: Mapping[str, Any], run: Path, console: Console) -> None:
    """Print how a run went: its figures, and where each stage's time went."""
    figures = [f"loss {summary['train_loss']:.4f}"] if summary["train_loss"] is not None else []
    metrics = {name: value for name, value in summary["metrics"].items() if name != "loss" and value is not None}
    figures += [f"{name} {value:.4f}" for name, value in metrics.items()]
    figures.append(f"{summary['samples_per_second']:,.0f} samples/s")
    if summary["speedup"] is not None:
        figures.append(f"{summary['speedup']:.2f}x {summary['baseline']['schedule']}")
    head = f"{summary['exit_reason']} after {summary['steps']} steps in {summary['wall_seconds']:.1f} s"
    if all(stage.get("useful") is not None for stage in summary["stages"]):
        console.print(_table(summary["stages"], narrow=console.width < NARROW))
    say = [f"{head}: {', '.join(figures)}"]
    if summary["weights_sha256"]:
        say.append(f"weights: {newest_snapshot(run)}; stepahead export {quote(str(run))} out.safetensors")
    else:
        unsaved = [stage_title(str(index)) for index, stage in enumerate(summary["stages"]) if "useful" not in stage]
        say.append(f"no weights were saved: {', '.join(unsaved)} did not come to an end")
    for line in say:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def last_words(outcome: Outcome, run: Path) -> str:
    """Return what went wrong, the cause first; empty for a run that did not go wrong."""
    if outcome.losses:
        return "\n".join(_obituary(loss, run) for loss in outcome.losses)
    failure = outcome.failure
    if outcome.reason != "failed" or failure is None:
        return ""
    log = _log_of(failure.worker, run)
    what = "" if failure.expected else failure.traceback.rstrip() + "\n"
    return (
        f"{what}{stage_title(failure.worker)} failed after {failure.steps} steps: "
        f"{failure.error}: {failure.message}\nlog: {log}"
    )


def _obituary(loss: Loss, run: Path) -> str:
    hint = " (by hand, or because memory ran out: dmesg would tell)" if loss.status == -signal.SIGKILL else ""
    log = _log_of(loss.worker, run)
    return f"{stage_title(loss.worker)} {death(loss)}{hint} after about {loss.steps} steps; log: {log}"


def _table(stages: list[dict[str, Any]], *, narrow: bool) -> Table:
    """Return a row for each stage: what its time went into."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("stage", "useful", "tax", "idle", "cosine", "lag", "idle mostly for"):
        if heading != "idle mostly for" or not narrow:
            table.add_column(heading, no_wrap=True, justify="left" if heading == "idle mostly for" else "right")
    for index, stage in enumerate(stages):
        idle = stage["idle"]
        most = max(idle, key=lambda cause: idle[cause])
        shares = [f"{share:.0%}" for share in (stage["useful"], stage["tax"], sum(idle.values()))]
        predictor, lag = stage["predictor"], stage["lag"]
        cosine = f"{predictor['cosine']:.2f}" if predictor and predictor["cosine"] is not None else ""
        cells = [str(index), *shares, cosine, str(lag["p50"]) if lag else "", CAUSE_WORDS[most]]
        table.add_row(*cells[: len(table.columns)])
    return table


def _log_of(worker: str, run: Path) -> Path:
    """Return where to read on; what ranks print, torchrun keeps."""
    folder = log_folder(run, worker)
    return next((file for file in (folder / "stderr.log", folder / "failure.json") if file.exists()), folder)


def _counted(names: tuple[str, ...]) -> list[str]:
    """Return the names, those that come several times in a row with their number."""
    runs = [(name, len(list(same))) for name, same in groupby(names)]
    return [name if count == 1 else f"{name} x{count}" for name, count in runs]
