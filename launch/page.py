"""A page that needs nothing else: its style, tables and cards, for the reports."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .charts import Series, draw_lines

__all__ = ["Cell", "card", "page", "row", "table", "thin"]

MOST_POINTS = 300
STYLE = """
:root { --ink: #1b1f24; --quiet: #667; --page: #fff; --card: #f5f6f8; --grid: #d9dce1; --idle: #e3e5ea;
  --useful: #2b86c5; --tax: #e69f00; --mark: #1b1f24; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --quiet: #9aa1ab; --page: #14171b; --card: #1e2228;
  --grid: #353b44; --idle: #333941; --useful: #56b4e9; --tax: #e69f00; --mark: #fff; } }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  padding: 1.2rem; max-width: 1080px; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.card ul { margin: 0; padding-left: 1.2rem; } .card li { margin: .3rem 0; }
.quiet { color: var(--quiet); } .figures { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.figure { background: var(--card); border-radius: .5rem; padding: .6rem .9rem; min-width: 8.5rem; }
.figure b { display: block; font-size: 1.4rem; } .figure span { color: var(--quiet); font-size: .85rem; }
.grid2 { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.card { background: var(--card); border-radius: .5rem; padding: .8rem; overflow-x: auto; }
.grid2 .card { max-width: 640px; }
.card h3 { font-size: .95rem; margin: 0 0 .4rem; }
.stage { display: grid; grid-template-columns: 4.5rem 1fr; gap: .5rem; align-items: center; margin: .35rem 0; }
.bar { position: relative; display: flex; height: 1.35rem; background: var(--idle); border-radius: .2rem;
  overflow: hidden; }
.bar i { display: block; height: 100%; } .useful { background: var(--useful); }
.tax { background: repeating-linear-gradient(45deg, var(--tax) 0 4px, transparent 4px 8px); }
.bar .mark { position: absolute; top: 0; width: 3px; background: var(--mark); }
.legend { font-size: .85rem; color: var(--quiet); margin: .3rem 0 0; }
.key { margin-right: .9rem; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem;
  border-radius: .15rem; background: currentColor; vertical-align: -.1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--quiet); font-weight: 600; }
@media (max-width: 720px) { .wide tr:first-child { display: none; }
  .wide tr { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 0 1.2rem;
    padding: .4rem 0; border-bottom: 1px solid var(--grid); }
  .wide td:empty { display: none !important; }
  .wide td { display: flex; justify-content: space-between; border: 0; padding: .1rem 0; }
  .wide td:first-child { grid-column: 1 / -1; font-weight: 600; justify-content: start; gap: .4rem; }
  .wide td::before { content: attr(data-head); color: var(--quiet); font-weight: 400; } }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--quiet); font-size: 13px; }
@media screen and (max-width: 520px) { svg text { font-size: 18px; } }
.grid { stroke: var(--grid); } .line { fill: none; stroke-width: 2; stroke: currentColor; }
.line.d1 { stroke-dasharray: 7 4; } .line.d2 { stroke-dasharray: 2 4; }
.node { fill: var(--card); stroke: var(--useful); stroke-width: 1.5; }
.edge { fill: none; stroke: var(--quiet); stroke-width: 1.2; }
.earlier { stroke-dasharray: 4 3; }
.fill { fill: var(--useful); } .dot { fill: currentColor; }
.s0 { color: #2b86c5; } .s1 { color: #e69f00; } .s2 { color: #009e73; } .s3 { color: #d55e00; } .s4 { color: #cc79a7; }
.s5 { color: #56b4e9; } .s6 { color: #8a7b00; } .s7 { color: var(--quiet); }
.t-forward { fill: var(--useful); } .t-backward { fill: var(--useful); opacity: .72; }
.t-optimizer { fill: var(--useful); opacity: .45; }
.t-predict, .t-learn { fill: var(--tax); } .t-replay { fill: var(--tax); opacity: .72; }
 .t-send, .t-evaluate { fill: var(--quiet); }
.t-wait_input, .t-wait_credit, .t-wait_gradient { fill: var(--idle); }
pre { white-space: pre-wrap; font-size: .85rem; margin: 0; } .card p, pre { overflow-wrap: anywhere; }
@media print { body { max-width: none; } .card, .figure { break-inside: avoid; border: 1px solid var(--grid); } }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: stepahead</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{style}</style></head><body>{body}</body></html>
"""
Cell = tuple[str, str | None]
"""What is in a cell, and the key of the summary that it has the figure of."""


def page(title: str, body: str) -> str:
    """Return a whole page."""
    return PAGE.format(title=escape(title), style=STYLE, body=body)


def table(heads: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """Return a table of rows."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table class='{kind}'><tr>{head}</tr>{''.join(rows)}</table>"


def row(heads: Sequence[str], cells: Sequence[Cell]) -> str:
    """Return a row, each cell with its heading: on a phone a wide table becomes a list."""
    keys = (f" data-key='{key}'" if key else "" for _, key in cells)
    named = zip(heads, keys, cells, strict=True)
    return "<tr>" + "".join(f"<td data-head='{head}'{key}>{text}</td>" for head, key, (text, _) in named) + "</tr>"


def card(title: str, series: Sequence[Series], x: str) -> str:
    """Return a chart of lines with its title."""
    return f"<div class='card'><h3>{escape(title)}</h3>{draw_lines(series, x=x)}</div>"


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most so many of the points, the last one among them."""
    every = max(-(-len(points) // MOST_POINTS), 1)
    return [*points[:-1:every], *points[-1:]]
