"""`stepahead profile JOB`: where every millisecond of every stage went, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from stepahead.pipeline import measure_costs

from .advice import BLOCK, LOCK, advise
from .breakdown import Breakdown, break_down
from .cutting import usual_optimizer
from .gantt import LETTERS, draw_gantt
from .monitor import Baseline
from .plan import Plan
from .run import RunResult, launch
from .screen import say
from .trace import FILE, Tracer

__all__ = ["blocks_of", "profile", "table_of"]

WARM_UP = 20
FEW = 20
"""Steps up to which a profile may be chance."""
HEADS_WIDTH, STAGE_WIDTH = 15, 10


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
    locked = [] if baseline is None else [Breakdown(spans, sum(spans.values())) for spans in baseline.spans]
    if stages is None:
        say(console, "too few steps were traced to say where the time went: give more --steps, or more data")
        return
    for block in blocks_of(len(stages), console.width, compared=bool(locked)):
        console.print(table_of(stages, locked, block))
    if baseline is not None and locked:
        say(console, f"locked: the same stages under {baseline.schedule}, {baseline.source}")
    elif baseline is not None and baseline.useful:
        shares = ", ".join(f"{share:.0%}" for share in baseline.useful)
        say(console, f"useful under {baseline.schedule} ({baseline.source}, which kept no spans), by stage: {shares}")
    for row in draw_gantt(tracer.moments, min(console.width, 120)):
        console.print(row, no_wrap=True, overflow="crop")
    names = [layer.name for layer in plan.layers]
    shared = len(set(zip(plan.devices, plan.cores, strict=True))) < plan.stages
    waits = LOCK if plan.signal == "locked" else BLOCK if plan.config.blocks not in (None, plan.stages) else None
    lines = advise(stages, plan.cut, _costs(plan), names, shared=shared, waits=waits)
    for line in lines or ["every stage is busy nearly all the time: nothing to advise"]:
        say(console, f"- {line}")
    traced = (plan.config.steps or 0) - WARM_UP
    rough = f"{traced} are few to judge by; " if traced < FEW else ""
    say(console, f"{plan.config.steps} steps, the first {WARM_UP} not traced; {rough}{FILE} opens in ui.perfetto.dev")


def _costs(plan: Plan) -> list[float]:
    """Return what each layer takes; all the same for data that cannot be tried."""
    if isinstance(plan.job.data, Iterator):
        return [1.0] * len(plan.layers)
    costs = measure_costs(plan.layers, plan.job.example, optimizer=usual_optimizer(plan.job), seed=plan.config.seed)
    return [cost.total for cost in costs]


def blocks_of(stages: int, width: int, *, compared: bool = False) -> list[range]:
    """Return the stages in parts that fit beside each other, each with another column beside it if compared."""
    fitting = max((width - HEADS_WIDTH) // (STAGE_WIDTH * (1 + compared)), 1)
    return [range(first, min(first + fitting, stages)) for first in range(0, stages, fitting)]


def table_of(stages: Sequence[Breakdown], locked: Sequence[Breakdown], shown: range) -> Table:
    """Return a row for each span and a column for each stage: so it fits where many spans beside each other do not.

    Beside each stage is what it does under the lock, where that is known.
    """
    table = Table(title="milliseconds a step", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    some: list[Breakdown] = []
    for index in shown:
        table.add_column(f"stage {index}", justify="right", no_wrap=True)
        some.append(stages[index])
        if locked:
            table.add_column("locked", justify="right", no_wrap=True, style="bright_black")
            some.append(locked[index])
    for name in LETTERS:
        if any(stage.spans.get(name) for stage in [*stages, *locked]):
            table.add_row(name.replace("_", " "), *(_number(stage.spans.get(name, 0.0)) for stage in some))
    table.add_row("other", *(_number(stage.idle["other"]) for stage in some))
    table.add_row("in all", *(_number(stage.wall) for stage in some), end_section=True)
    table.add_row("useful", *(f"{stage.useful / stage.wall:.0%}" for stage in some))
    table.add_row("tax", *(f"{stage.tax / stage.wall:.0%}" for stage in some))
    table.add_row("idle", *(f"{sum(stage.idle.values()) / stage.wall:.0%}" for stage in some), end_section=True)
    return table


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds else "-"
