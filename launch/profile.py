"""`stepahead profile JOB`: where every millisecond of every stage went, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .advice import Breakdown, advise
from .causes import CAUSE_HEADS
from .gantt import LETTERS, Moment, draw_gantt
from .monitor import Baseline
from .plan import Plan, layer_costs
from .run import RunResult, launch
from .screen import say
from .trace import FILE, Tracer

__all__ = ["blocks_of", "break_down", "profile", "table_of"]

WARM_UP = 20
FEW = 20
"""Steps up to which a profile may be chance."""
HEADS_WIDTH, STAGE_WIDTH = 23, 10


def profile(plan: Plan, console: Console, steps: int, *, named: bool = True) -> RunResult:
    """Train for some steps to warm up and for some that are traced, and show what they were spent on."""
    config = replace(plan.config, steps=WARM_UP + steps, epochs=None, evaluate=False, telemetry=True)
    plan = replace(plan, config=config, total_steps=config.steps)
    result = launch(plan, console, named=named, traced=(WARM_UP, WARM_UP + steps - 1))
    if result.exit_code != 0:
        say(console, f"no profile: the run did not come to its end; what was traced is in {FILE}")
    elif result.tracer is not None:
        show(plan, result.tracer, console, result.baseline)
    return result


def show(plan: Plan, tracer: Tracer, console: Console, baseline: Baseline | None) -> None:
    """Print where the time went."""
    stages = break_down(tracer.moments)
    if stages is None:
        say(console, "too few steps were traced to say where the time went: give more --steps, or more data")
        return
    for block in blocks_of(len(stages), console.width):
        console.print(table_of(stages, block, baseline))
    for row in draw_gantt(tracer.moments, min(console.width, 120)):
        console.print(row, no_wrap=True, overflow="crop")
    names = [layer.name for layer in plan.layers]
    shared = len(set(zip(plan.devices, plan.cores, strict=True))) < plan.stages
    costs = layer_costs(plan.config, plan.job, plan.layers)
    lines = advise(stages, plan.cut, costs, names, shared=shared, locked=plan.signal == "locked")
    for line in lines or ["every stage is busy nearly all the time: nothing to advise"]:
        say(console, f"- {line}")
    traced = (plan.config.steps or 0) - WARM_UP
    rough = f"{traced} are few to judge by; " if traced < FEW else ""
    say(console, f"{plan.config.steps} steps, the first {WARM_UP} not traced; {rough}{FILE} opens in ui.perfetto.dev")


def break_down(moments: Sequence[Sequence[Moment]]) -> list[Breakdown] | None:
    """Return where the time of each stage goes, over the steps that all of them were seen to make whole."""
    steps = [{moment[2] for moment in of_stage if moment[3] == "forward"} for of_stage in moments]
    common = sorted(set.intersection(*steps)) if steps else []
    if len(common) < 2:
        return None
    return [_of_stage(of_stage, common[0], common[-1]) for of_stage in moments]


def _of_stage(moments: Sequence[Moment], first: int, last: int) -> Breakdown:
    """From the forward pass of the first step to that of the last one: as many steps as are between."""
    starts = {moment[2]: moment[0] for moment in moments if moment[3] == "forward"}
    begin, end, steps = starts[first], starts[last], last - first
    spans: dict[str, float] = {}
    for start, stop, _, name in moments:
        inside = min(stop, end) - max(start, begin)
        if inside > 0:
            spans[name] = spans.get(name, 0.0) + inside / 1e6 / steps
    return Breakdown(spans, (end - begin) / 1e6 / steps)


def blocks_of(stages: int, width: int) -> list[range]:
    """Return the stages in parts that fit beside each other."""
    fitting = max((width - HEADS_WIDTH) // STAGE_WIDTH, 1)
    return [range(first, min(first + fitting, stages)) for first in range(0, stages, fitting)]


def table_of(stages: Sequence[Breakdown], shown: range, baseline: Baseline | None) -> Table:
    """Return a row for each span and a column for each stage: so it fits where many spans beside each other do not."""
    table = Table(title="milliseconds a step", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for index in shown:
        table.add_column(f"stage {index}", justify="right", no_wrap=True)
    some = [stages[index] for index in shown]
    for name in LETTERS:
        if any(stage.spans.get(name) for stage in stages):
            table.add_row(name.replace("_", " "), *(f"{stage.spans.get(name, 0.0):.2f}" for stage in some))
    table.add_row("other", *(f"{stage.idle['other']:.2f}" for stage in some))
    table.add_row("in all", *(f"{stage.wall:.2f}" for stage in some), end_section=True)
    table.add_row("useful", *(f"{(stage.busy - stage.tax) / stage.wall:.0%}" for stage in some))
    table.add_row("tax", *(f"{stage.tax / stage.wall:.0%}" for stage in some), end_section=True)
    if baseline:
        _add_baseline(table, baseline, shown)
    return table


def _add_baseline(table: Table, baseline: Baseline, shown: range) -> None:
    """Add what the same stages do under the lock, as shares of their time."""
    table.add_row(f"under {baseline.schedule}: useful", *(f"{baseline.useful[index]:.0%}" for index in shown))
    for cause, words in CAUSE_HEADS.items():
        shares = [baseline.idle[index].get(cause, 0.0) for index in shown if index < len(baseline.idle)]
        if any(share >= 0.005 for share in shares):
            table.add_row(words, *(f"{share:.0%}" for share in shares))
