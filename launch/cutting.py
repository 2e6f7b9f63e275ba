"""How the layers of a job are cut for a run: by count, by name, or so that all stages take equally long in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.optim import Adam

from stepahead.pipeline import (
    LOCKED,
    Cut,
    Layer,
    LayerCost,
    Layout,
    OptimizerRecipe,
    UsageError,
    check_cut,
    cut_at,
    cut_by_cost,
    cut_by_count,
    groups_a_stage,
    joined_in,
    layers_of,
    measure_costs,
)

from .config import Config
from .job import Job
from .stepping import signal_recipe, truth_of

__all__ = ["costs_of", "cut_of", "layers_in", "usual_optimizer"]


def layers_in(job: Job) -> tuple[Layer, ...]:
    """Return the model's layers in order; a graph's by trying a batch."""
    if not isinstance(job.model, Layout):
        return layers_of(job.model)
    if isinstance(job.data, Iterator):
        raise UsageError("the model is a graph, which tries a batch; give data that can be run through more than once")
    return layers_of(job.model, job.example[0])


def cut_of(config: Config, job: Job, layers: tuple[Layer, ...], costs: Sequence[LayerCost] | None = None) -> Cut:
    """Return how many layers each group has.

    Args:
        costs: What the layers cost, if it has been measured.
    """
    of_each, joined = groups_a_stage(config.schedule), joined_in(layers)
    groups = (config.stages or job.stages) * of_each
    if of_each > 1 and groups > len(layers) and config.cut in ("count", "cost"):
        most = f"{len(layers)} layers are enough for {len(layers) // of_each} stages"
        raise UsageError(f"{config.schedule} gives each stage {of_each} groups of layers: {most}")
    if config.cut == "count":
        return cut_by_count(len(layers), groups, joined)
    if config.cut == "cost":
        return _by_cost(config, job, costs or costs_of(config, job, layers), groups, joined)
    names = [name.strip() for name in config.cut.split(",")]
    cut = cut_at([layer.name for layer in layers], names)
    if len(cut) % of_each or config.stages not in (None, len(cut) // of_each):
        made = f"cut names {len(names)} layers, which makes {len(cut)} {'groups' if of_each > 1 else 'stages'}"
        needed = f"{config.schedule} takes {groups}" if of_each > 1 else f"stages is {config.stages}"
        raise UsageError(f"{made}, and {needed}")
    check_cut(layers, cut)
    return cut


def costs_of(config: Config, job: Job, layers: tuple[Layer, ...]) -> list[LayerCost]:
    """Return what each layer takes for a batch, and what a signal behind it would."""
    if isinstance(job.data, Iterator):
        raise UsageError("cut is 'cost', which tries a batch; give data that can be run through more than once")
    if config.device == "virtual":
        raise UsageError("cut is 'cost', but virtual stages last as long whatever they hold; cut by count or by name")
    signal = None if config.schedule in LOCKED else signal_recipe(config, job)
    return measure_costs(layers, job.example, optimizer=usual_optimizer(job), signal=signal, seed=config.seed)


def usual_optimizer(job: Job) -> OptimizerRecipe:
    """Return the job's optimizer, or a usual one if its stages have different ones."""
    return job.optimizer if callable(job.optimizer) else Adam


def _by_cost(config: Config, job: Job, costs: Sequence[LayerCost], groups: int, joined: Sequence[bool]) -> Cut:
    """Cut so that the slowest stage is as fast as it can be, with its guesses and second passes.

    That a stage is frozen, has no guess inside a block, or has a predictor's error flow into it, is not counted.
    """
    alone, learns = [cost.total for cost in costs], [cost.learns for cost in costs]
    if config.schedule in LOCKED:
        return cut_by_cost(alone, groups, joined=joined, learns=learns)
    truth = truth_of(config, job)
    signals = None if truth.is_late else [cost.signal for cost in costs]
    again = [[cost.again(truth.at(group, groups)) for cost in costs] for group in range(groups - 1)]
    return cut_by_cost(alone, groups, signals, joined, again, learns)
