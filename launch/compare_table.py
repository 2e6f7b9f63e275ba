"""The table of a comparison on a terminal: as many columns as fit."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .comparison import Comparison, Row

__all__ = ["LEAST_WIDTHS", "table"]

MEGA = 1e6
LEAST_WIDTHS = {
    "x best": 56,
    "x lock": 64,
    "useful": 72,
    "tax": 80,
    "idle": 104,
    "sent": 104,
    "activations": 124,
    "quartiles": 150,
    "its core": 160,
}
"""Of the screen, from which on a column is shown."""


def table(found: Comparison, width: int) -> Table:
    """Return a row for each schedule; what does not fit is left out, and is in the page."""
    rows = [_cells(found, row) for row in found.rows]
    shown = [head for head in rows[0] if width >= LEAST_WIDTHS.get(head, 0)]
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in shown:
        made.add_column(head, justify="left" if head == "schedule" else "right", no_wrap=True)
    for cells in rows:
        made.add_row(*(cells[head] for head in shown))
    return made


def _cells(found: Comparison, row: Row) -> dict[str, str]:
    """Return what there is to say of a schedule, by heading."""
    ratios = (found.ratio(row, found.row("lockstep")), found.ratio(row, found.best_locked))
    to_lockstep, to_best = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    peak = [value / MEGA for value in row.peak_activation_bytes]
    seconds = row.seconds_to(found.target)
    reached = f"{seconds:.1f} s" if seconds is not None else ("not yet" if row.curves else "")
    return {
        "schedule": row.name,
        "samples/s": "-" if row.rate is None else f"{row.rate:,.0f}",
        "quartiles": "" if row.spread is None else f"{row.spread[0]:,.0f} to {row.spread[1]:,.0f}",
        "x lock": to_lockstep,
        "x best": to_best,
        "useful": _range(row.useful),
        "tax": _range(row.tax) if any(row.tax) else "",
        "idle": _range([1 - useful - tax for useful, tax in zip(row.useful, row.tax, strict=True)]),
        "activations": f"{peak[0]:.1f} .. {peak[-1]:.1f} MB" if peak else "",
        "sent": "" if row.bytes_per_step is None else f"{row.bytes_per_step / MEGA:.2f} MB",
        "its core": "" if row.contention is None else f"{row.contention:.0%}",
        "loss" if found.target is None else f"to {found.target:.3g}": reached,
    }


def _range(shares: Sequence[float]) -> str:
    """Return the least and the largest of the stages' shares."""
    if not shares:
        return ""
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low[:-1]}-{high}"
