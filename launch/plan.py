"""The plan of a run: which layers make which stage, where each runs, on what it steps. Made before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from torch import nn

from stepahead.pipeline import (
    LOCKED,
    MICROBATCHED,
    Cut,
    LagMode,
    Layer,
    LayerCost,
    Recipe,
    Truth,
    UsageError,
    build_groups,
    groups_a_stage,
    groups_of,
)
from stepahead.workers import (
    DATA,
    Batches,
    Choice,
    Delay,
    Feed,
    Lag,
    Pace,
    Place,
    Site,
    StageWork,
    Wiring,
    worker_names,
)

from .checks import check_blocks, check_links, check_schedule, check_truth, link_notes
from .config import Config
from .cutting import cut_of, layers_in
from .job import Job, load_job
from .placement import cores_of, devices_of
from .stepping import signal_name, signals_of, truth_of
from .virtual import paces_of, parse_slow_stages, short_actions

__all__ = ["Plan", "make_plan", "plan_run"]

PREFETCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is settled before a run starts."""

    config: Config
    """With what the job left open filled in."""
    job: Job
    layers: tuple[Layer, ...]
    cut: Cut
    devices: tuple[str, ...]
    cores: tuple[tuple[int, ...], ...]
    """For each stage."""
    data_cores: tuple[int, ...]
    """For the data process: those that no stage has, or else the last stage's, which has no predictor to pay for."""
    total_steps: int | None
    """As far as it is known beforehand."""
    hosts: tuple[int, ...]
    """Of each stage: those with the same number are on one host."""
    site: Site | None = None
    """This host, if it is one of several."""
    paces: tuple[Pace, ...] = ()
    """Of virtual stages, how long what each group does lasts."""
    notes: tuple[str, ...] = ()
    """What its user should know."""

    @property
    def stages(self) -> int:
        return len(self.devices)

    @property
    def is_locked(self) -> bool:
        """Whether the schedule makes stages wait for the gradient from below."""
        return self.config.schedule in LOCKED

    @property
    def microbatches(self) -> int:
        """Into how many a batch is cut."""
        return (self.config.microbatches or self.stages) if self.config.schedule in MICROBATCHED else 1

    def groups_of(self, stage: int) -> list[tuple[Layer, ...]]:
        """Return the layers of each group that a stage has."""
        firsts = [sum(self.cut[:group]) for group in range(len(self.cut))]
        return [
            self.layers[firsts[group] : firsts[group] + self.cut[group]]
            for group in groups_of(self.config.schedule, stage, self.stages)
        ]

    @property
    def is_on_several_hosts(self) -> bool:
        return len(set(self.hosts)) > 1

    @property
    def names(self) -> list[str]:
        """Of all workers."""
        return worker_names(self.stages)

    @property
    def wiring(self) -> Wiring:
        """What joins them."""
        choice, secret = cast(Choice, self.config.link), self.config.link_secret
        return Wiring(devices=self.devices, hosts=self.hosts, choice=choice, encrypts=secret is not None)

    @property
    def signal(self) -> str:
        """What the stages step on, by name."""
        return signal_name(self.config, self.job)

    @property
    def truth(self) -> Truth:
        """What they do with the truth; locked stages wait for it in any case."""
        return truth_of(self.config, self.job)

    @property
    def devices_of_first_host(self) -> list[str]:
        """The device of each stage, as far as the supervisor can look at it: those of other hosts pass for none."""
        return [
            device if host == self.hosts[0] else "cpu" for device, host in zip(self.devices, self.hosts, strict=True)
        ]

    @property
    def is_virtual(self) -> bool:
        return self.config.device == "virtual"

    @property
    def recipe(self) -> Recipe:
        """What turns groups into stages."""
        job = self.job
        return Recipe(
            loss=job.loss,
            signal=signals_of(self.config, job, self.stages),
            truth=self.truth,
            optimizer=job.optimizer,
            lr_schedule=job.lr_schedule,
            clip=job.clip,
            inputs=None if self.is_locked else job.inputs,
            chance=1.0 if self.is_locked else job.chance,
            on_non_finite=job.on_non_finite,
            seed=self.config.seed,
        )

    def work(self, stage: int) -> StageWork:
        """Return what the worker of a stage needs to know."""
        config, job = self.config, self.job
        mode: LagMode = "exact" if config.lag == "exact" else "free"
        lag = Lag(mode, config.max_lag or default_lag(mode))
        device = self.devices[stage]
        return StageWork(
            layers=self.layers,
            cut=self.cut,
            recipe=self.recipe,
            lag=lag,
            metrics=job.metrics,
            device=device,
            schedule=config.schedule,
            microbatches=self.microbatches,
            feed=None if self.recipe.inputs is None else self.feed(),
            pace=self._pace(stage),
        )

    def _pace(self, stage: int) -> Pace | None:
        """Return how long what a virtual stage does lasts."""
        if not self.paces:
            return None
        first = groups_of(self.config.schedule, stage, self.stages)[0]
        slow = parse_slow_stages(self.config.slow_stage, self.stages).get(stage, 1.0)
        return replace(self.paces[first], stage=stage, slow=slow)

    def feed(self) -> Feed:
        """Return what goes into the pipeline."""
        return Feed(
            train=self.job.data,
            test=self.job.test if self.config.evaluate else None,
            steps=self.config.steps,
            epochs=self.config.epochs,
            evaluate_every=self.config.evaluate_every,
            seed=self.config.seed,
        )

    def place(self, name: str, run: Path, *, torchrun: bool = False) -> Place:
        """Return where a worker runs."""
        return Place(
            name=name,
            run=run.resolve(),
            wiring=self.wiring,
            cores=self.data_cores if name == DATA else self.cores[int(name)],
            window=self.config.window,
            prefetch=PREFETCH,
            timeout=self.config.timeout,
            spin=self.config.spin_us / 1e6,
            ledger=self.config.ledger,
            telemetry=self.config.telemetry,
            torchrun=torchrun,
            site=self.site,
            delay=Delay(self.config.link_latency_ms / 1e3, self.config.link_gbps),
        )


def default_lag(mode: LagMode) -> int:
    """Return the lag where none is given: an exact one of 2 leaves no slack, of 3 it leaves a step."""
    return 3 if mode == "exact" else 8


def plan_run(config: Config, hosts: Sequence[int] = (), here: int = 0) -> Plan:
    """Load the job that the settings name, and plan its run."""
    return make_plan(config, load_job(config.job, config.options, seed=config.seed), hosts, here)


def make_plan(
    config: Config, job: Job, hosts: Sequence[int] = (), here: int = 0, costs: Sequence[LayerCost] | None = None
) -> Plan:
    """Settle what the settings and the job leave open, and refuse what cannot be done.

    Args:
        config: The settings.
        job: What is trained.
        hosts: The number of each stage's host, if there are several.
        here: That of this one.
        costs: What the layers cost, if that has been measured and is asked for.
    """
    layers = layers_in(job)
    cut = cut_of(config, job, layers, costs)
    if config.cut == "cost":  # whoever makes the plan again from these settings must not measure again
        firsts = [layers[sum(cut[:stage])].name for stage in range(1, len(cut))]
        config = replace(config, cut=",".join(firsts) or "count")
    if all(isinstance(layer.source, nn.Module) for layer in layers):
        build_groups(layers, cut)  # refuses a weight that would be in two stages
    stages = len(cut) // groups_a_stage(config.schedule)
    config = _resolve(config, job, stages)
    hosts = tuple(hosts) or (here,) * stages
    ours = tuple(stage for stage, host in enumerate(hosts) if host == here)
    devices = devices_of(config.device, stages, ours)
    cores, notes = cores_of(devices, ours)
    others = tuple(sorted(os.sched_getaffinity(0) - {core for own in cores for core in own}))
    total = config.steps
    if total is None and config.epochs is not None:
        total = _length_of(job.data, config.epochs)
    plan = Plan(
        config=config,
        job=job,
        layers=layers,
        cut=cut,
        devices=devices,
        cores=cores,
        data_cores=others or cores[ours[-1]],
        hosts=hosts,
        total_steps=total,
        notes=notes,
    )
    check_schedule(plan)
    check_blocks(plan)
    check_truth(plan.truth, config)
    check_links(plan)
    if config.link == "auto" and not plan.is_on_several_hosts and len(set(devices) - {"cpu", "virtual"}) < 2:
        plan = replace(plan, config=replace(config, link="shm"))
    plan = replace(plan, notes=(*plan.notes, *link_notes(plan)))
    plan.truth.at(0, plan.stages)  # both refuse what cannot be
    _ = plan.recipe
    return _as_virtual(plan) if plan.is_virtual else plan


def _as_virtual(plan: Plan) -> Plan:
    """Settle how long what virtual stages do lasts."""
    config, data = plan.config, plan.job.data
    assert config.stage_ms is not None, "checked with the settings"
    parse_slow_stages(config.slow_stage, plan.stages)
    if isinstance(data, Iterator):
        raise UsageError("device is 'virtual', which tries a batch; give data that can be run through more than once")
    batch = plan.job.example
    paces = paces_of(plan.layers, plan.cut, plan.recipe, batch, stage_ms=config.stage_ms, jitter=config.jitter)
    pieces = plan.microbatches * groups_a_stage(config.schedule)
    return replace(plan, paces=paces, notes=(*plan.notes, *short_actions(paces, pieces)))


def _resolve(config: Config, job: Job, stages: int) -> Config:
    """Fill in what only the job knows."""
    steps, epochs = config.steps, config.epochs
    if steps is None and epochs is None:
        steps, epochs = job.steps, job.epochs or (None if job.steps else 1)
    return replace(
        config,
        job=config.job or job.name,
        stages=stages,
        steps=steps,
        epochs=epochs,
        evaluate_every=config.evaluate_every or job.evaluate_every,
    )


def _length_of(data: Batches, epochs: int) -> int | None:
    """Return how many batches so many epochs have, if the data knows; a loader of a stream only seems to."""
    try:
        return epochs * len(data) if isinstance(data, Sized) else None
    except TypeError:
        return None
