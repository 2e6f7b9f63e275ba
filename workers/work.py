"""What workers do at their posts: run a stage, or feed the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor

from stepahead.pipeline import (
    MICROBATCHED,
    Activation,
    Cut,
    Group,
    Layer,
    Metric,
    QualityReading,
    Recipe,
    Stage,
    build_group,
    example_outputs,
    groups_of,
    owner_of,
)
from stepahead.pipeline.devices import memory_used

from .channels import Sender
from .checkpoints import save_stage
from .delays import DueTimes
from .feed import Feed
from .joining import LINKS
from .locked import LockedLoop
from .locked_stage import LockedStage, Placed
from .loop import Lag, Links, Loop, Progress
from .memory import ActivationMeter
from .post import Post
from .samples import PREDICTOR, write_sample
from .spans import Wait
from .unlocked import UnlockedLoop
from .virtual import Pace, Paced

__all__ = ["StageWork", "feed_pipeline", "run_stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """What a worker needs to know to run its stage."""

    layers: tuple[Layer, ...]
    cut: Cut
    recipe: Recipe
    lag: Lag
    metrics: Mapping[str, Metric]
    device: str
    schedule: str
    microbatches: int
    """Into how many a batch is cut, under the schedules that do so."""
    feed: Feed | None = None
    """What stages draw themselves, where they run on guesses of their inputs."""
    pace: Pace | None = None
    """How long what a virtual stage does lasts."""


def run_stage(work: StageWork, post: Post) -> None:
    """Run the place's stage until the pipeline stops; then save its weights and report."""
    if work.schedule in MICROBATCHED:
        _run_locked(work, post)
        return
    index, stages = post.place.stage, post.place.wiring.stages
    group = build_group(work.layers, work.cut, index, seed=work.recipe.seed)
    links = Links(**cast(dict[str, Any], post.ends()))
    meter = ActivationMeter()

    def make_stage(batch: Activation) -> Stage:
        above = (batch.tensors[0], _guessed_input(work, index, batch)) if draws else None
        h_in = above[1] if above else batch.tensors[0]
        (output,) = example_outputs([group], h_in)
        span = post.spans if work.pace is None else Paced(post.spans, work.pace)
        stage = work.recipe.stage(group, index, stages, output, batch.label, above=above, device=work.device, span=span)
        meter.begin(group, replace(batch, tensors=(h_in,)))
        post.begin()
        return stage

    draws = work.feed.draws() if work.feed and index else None
    how = (make_stage, links, work.lag, post.spans, work.metrics, post.progress)
    loop = UnlockedLoop(draws, *how) if draws else Loop(*how)
    post.drive(loop.run(), links.ends, partial(_report, post, loop))
    post.spans.end()
    queued = links.activations_in.capacity
    peak = meter.peak(loop.stage.kept.most_graphs, loop.stage.most_held, queued) if loop.stage else 0
    _finish(work, post, loop, {index: group}, peak)


def _guessed_input(work: StageWork, index: int, batch: Activation) -> Tensor:
    """Return an example of what will come from above, of the layers there: they are built for it and let go."""
    h = batch.tensors[0]
    for above in range(index):
        (h,) = example_outputs([build_group(work.layers, work.cut, above, seed=work.recipe.seed)], h)
    return h


def _run_locked(work: StageWork, post: Post) -> None:
    """Run the place's groups under a schedule of torch's; then save their weights and report."""
    index, stages = post.place.stage, post.place.wiring.stages
    groups = {
        number: build_group(work.layers, work.cut, number, seed=work.recipe.seed)
        for number in groups_of(work.schedule, index, stages)
    }
    links = Links(**cast(dict[str, Any], post.ends()))
    post.joining.process_group()
    placed = [Placed(group, number, len(work.cut)) for number, group in groups.items()]
    stage = LockedStage(placed, work.recipe, post.place.device)
    meters = [ActivationMeter() for _ in groups]

    def begin(batch: Activation) -> None:
        for meter, group in zip(meters, groups.values(), strict=True):
            meter.begin(group, batch)

    loop = LockedLoop(
        stage,
        work.schedule,
        work.microbatches,
        links,
        post.spans,
        metrics=work.metrics,
        progress=post.progress,
        part=None if work.pace is None else Paced(post.spans, work.pace).piece,
        inputs_share=0.5 if work.pace is None else work.pace.inputs_share,
        begin=begin,
        ready=post.begin,
        delays=_due_times(work, post),
    )
    try:
        post.drive(loop.run(), links.ends, partial(_report, post, loop))
        post.spans.end()
        peak = sum(meter.peak(stage.most_in_flight[number], 0, 1) for number, meter in zip(groups, meters, strict=True))
        _finish(work, post, loop, groups, peak)
    finally:
        dist.destroy_process_group()  # under torchrun this process may live on, and no peer is to wait for it


def _due_times(work: StageWork, post: Post) -> DueTimes | None:
    """Return what slows torch's ways between stages down, if they are to be slow."""
    if not post.place.delay:
        return None
    owner = partial(owner_of, work.schedule, stages=post.place.wiring.stages)
    return DueTimes(post.place.run / LINKS / "due", post.place.delay, owner, len(work.cut), work.microbatches)


def _finish(work: StageWork, post: Post, loop: Loop | LockedLoop, groups: Mapping[int, Group], peak: int) -> None:
    """Save the weights of a stage's groups, and say how it went."""
    summary = _summary(work, post, loop, list(groups.values()), peak)
    _report(post, loop)
    for index, group in groups.items():
        save_stage(post.place.run, group, index)
    post.tell("finished", summary=summary)
    post.part()


def feed_pipeline(feed: Feed, post: Post) -> None:
    """Send the data down, until there is no more or the launcher has had enough."""
    link = post.ends()["activations_out"]
    assert isinstance(link, Sender), "data is sent"
    post.spans.begin()
    post.drive(_feed(feed, post, link), [link], partial(write_sample, post.telemetry, post.progress, None, None))
    post.tell("finished", summary={})
    post.part()


def _feed(feed: Feed, post: Post, link: Sender) -> Iterator[Wait | None]:
    def expect(steps: int) -> None:
        post.telemetry["expected"] = steps

    for message in feed.messages(lambda: post.stopping, expect):
        while not link.try_send(message):
            yield "wait_credit"
        if isinstance(message, Activation) and message.training:
            post.progress.count(len(message.tensors[0]))
        yield None


def _report(post: Post, loop: Loop | LockedLoop) -> None:
    """Write down how far the stage is, and tell the supervisor what came out of evaluations."""
    progress = post.progress
    write_sample(post.telemetry, progress, loop.stage, loop.links)
    for step, figures in progress.evaluations[progress.told :]:
        post.tell("evaluated", step=step, figures=figures)
    progress.told = len(progress.evaluations)


def _bytes_sent(loop: Loop | LockedLoop) -> int:
    """Return the bytes of tensors that the stage has sent; under torch's schedules, with what comes back for them."""
    of_torch = loop.stage.bytes_sent if isinstance(loop.stage, LockedStage) else 0
    return of_torch + sum(end.statistics().bytes for end in loop.links.ends if isinstance(end, Sender))


def _lag(progress: Progress) -> dict[str, Any] | None:
    """Return after how many steps gradients were learnt from."""
    if not progress.lags:
        return None
    return {"p50": progress.lag_p50, "max": max(progress.lags), "counts": sorted(progress.lags.items())}


def _quality(reading: QualityReading | None) -> dict[str, float] | None:
    """Return how good guesses are."""
    return None if reading is None else {key: asdict(reading)[key] for key in PREDICTOR}


def _summary(
    work: StageWork, post: Post, loop: Loop | LockedLoop, groups: Sequence[Group], peak: int
) -> dict[str, Any]:
    """Return the stage's entry in the run's summary."""
    statistics, progress = loop.stage.statistics() if loop.stage else None, post.progress
    used = memory_used(post.place.device)
    return {
        "device": work.device,
        "layers": ", ".join(group.title for group in groups),
        "parameters": sum(weight.numel() for group in groups for weight in group.parameters()),
        **post.spans.shares(),
        "predictor": _quality(statistics.quality if statistics else None),
        "inputs": _quality(statistics.inputs if statistics else None),
        "windows": _quality(statistics.windows if statistics else None),
        "missed": statistics.missed if statistics else None,
        "lag": _lag(progress),
        "skipped": statistics.skipped if statistics else 0,
        "samples": progress.samples,
        "seconds": post.spans.wall,
        "loss": progress.loss,
        "peak_activation_bytes": peak,
        "device_memory_bytes": used and used[1],
        "bytes_sent": _bytes_sent(loop),
        "contention": post.contention,
    }
