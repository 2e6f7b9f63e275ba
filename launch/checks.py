"""What a plan is refused for, and what its user should know of it, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from stepahead.pipeline import LOCKED, MICROBATCHED, Truth, UsageError, check_microbatches, locked
from stepahead.workers.locked import is_available

from .config import Config
from .stepping import signal_recipe

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["check_blocks", "check_links", "check_schedule", "check_truth", "link_notes"]

ENCRYPTED = "what goes between hosts is encrypted, and large tensors take about three times as long (benchmarks/links)"
GLOO_INSTEAD = "gloo joins them, through the CPU's memory; shared memory (link auto) is quicker"


def check_schedule(plan: Plan) -> None:
    """Refuse what torch's schedules cannot do, for the run and for its baseline."""
    config = plan.config
    if config.schedule in MICROBATCHED:
        _check_microbatched(plan, config.schedule, plan.microbatches)
    elif config.microbatches is not None:
        what = f"microbatches is {config.microbatches}, and under {config.schedule} batches are not cut"
        raise UsageError(f"{what}; leave it out, or take --schedule 1f1b")
    elif config.baseline in MICROBATCHED and plan.stages > 1:
        _check_microbatched(plan, config.baseline, plan.stages)


def _check_microbatched(plan: Plan, schedule: str, microbatches: int) -> None:
    check_microbatches(schedule, plan.stages, microbatches)
    if not is_available():
        raise UsageError(f"{schedule} is torch's own, from torch 2.13 on; this is {torch.__version__}")
    if plan.is_on_several_hosts:
        raise UsageError(f"{schedule} runs on one host; between hosts take --schedule decoupled or lockstep")
    gpus = [device for device in plan.devices if device.startswith("cuda")]
    if gpus and len(set(gpus)) < plan.stages:
        raise UsageError(f"{schedule} takes a GPU for each stage, and there are {len(set(gpus))} for {plan.stages}")
    if not isinstance(plan.job.data, Iterator) and (rows := len(plan.job.example[0])) % microbatches:
        what = f"a batch of {rows} samples does not divide into {microbatches} micro-batches"
        raise UsageError(f"{what}; give another --microbatches")


def check_blocks(plan: Plan) -> None:
    """Refuse blocks that there cannot be."""
    blocks = plan.config.blocks
    if blocks is None:
        return
    if blocks > plan.stages:
        raise UsageError(f"blocks is {blocks}, and there are {plan.stages} stages to put into them")
    if signal_recipe(plan.config, plan.job) is locked:
        raise UsageError(f"blocks is {blocks}, but all stages are locked to each other; leave it out")
    if plan.job.inputs is not None:
        raise UsageError(f"blocks is {blocks}, but stages that guess their inputs wait for nobody; leave it out")
    if plan.truth.use != "off":
        what = f"truth is {plan.truth.use!r}, but stages that are locked inside a block have none to pass on"
        raise UsageError(f"{what}; leave it out")


def check_truth(truth: Truth, config: Config) -> None:
    """Refuse what would be of no use."""
    use, signal = truth.use, config.signal
    if use != "off" and (config.schedule in LOCKED or signal == "locked"):
        raise UsageError(f"truth is {use!r}, but locked stages wait for it in any case; leave it out")
    if config.schedule in LOCKED and signal not in ("auto", "locked"):
        raise UsageError(f"signal is {signal!r}, but under {config.schedule} stages wait for the truth; leave it out")
    if truth.is_late and signal != "auto":
        raise UsageError(f"signal is {signal!r}, but with truth {use!r} stages step on that alone")
    if use == "learn" and signal in ("probe", "silent"):
        raise UsageError(f"truth is 'learn', but with signal {signal!r} there is nothing that could learn from it")


def check_links(plan: Plan) -> None:
    """Refuse links that cannot do what is asked of them."""
    link = plan.config.link
    if plan.is_on_several_hosts and link == "shm":
        raise UsageError("link is 'shm', and shared memory is on one host; leave it out, or say zmq or dist")
    if plan.config.link_secret is not None and link == "dist":
        raise UsageError("link is 'dist', which cannot encrypt, and there is a link_secret; say zmq")


def link_notes(plan: Plan) -> Iterator[str]:
    """Say what may surprise about the links."""
    if plan.is_on_several_hosts and plan.config.link_secret is not None:
        yield ENCRYPTED
    places = list(zip(plan.hosts, plan.devices, strict=True))
    alike = [stage for stage, (one, other) in enumerate(pairwise(places)) if one == other]
    shared = [stage for stage in alike if plan.devices[stage].startswith("cuda")]
    if plan.config.link == "dist" and shared:
        first, device = shared[0], plan.devices[shared[0]]
        yield f"stages {first} and {first + 1} share {device}, which NCCL refuses: {GLOO_INSTEAD}"
