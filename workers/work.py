"""What workers do at their posts: run a stage, or feed the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

from stepahead.pipeline import (
    Activation,
    Cut,
    Group,
    Layer,
    Metric,
    Recipe,
    Stage,
    build_group,
    example_outputs,
)
from stepahead.pipeline.devices import memory_used

from .channels import Sender
from .checkpoints import save_stage
from .feed import Feed
from .loop import Lag, Links, Loop, Progress
from .memory import ActivationMeter
from .post import Post
from .samples import PREDICTOR, write_sample
from .spans import Wait

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


def run_stage(work: StageWork, post: Post) -> None:
    """Run the place's stage until the pipeline stops; then save its weights and report."""
    index, stages = post.place.stage, post.place.wiring.stages
    group = build_group(work.layers, work.cut, index, seed=work.recipe.seed)
    links = Links(**cast(dict[str, Any], post.ends()))
    meter = ActivationMeter()

    def make_stage(batch: Activation) -> Stage:
        (output,) = example_outputs([group], batch.tensors[0])
        stage = work.recipe.stage(group, index, stages, output, batch.label, device=work.device, span=post.spans)
        meter.begin(group, batch)
        post.spans.begin()
        return stage

    loop = Loop(make_stage, links, work.lag, post.spans, work.metrics, post.progress)
    post.drive(loop.run(), links.ends, partial(_report, post, loop))
    post.spans.end()
    summary = _summary(work, post, loop, group, meter)
    _report(post, loop)
    save_stage(post.place.run, group, index)
    post.tell("finished", summary=summary)
    for end in links.ends:
        end.close()


def feed_pipeline(feed: Feed, post: Post) -> None:
    """Send the data down, until there is no more or the launcher has had enough."""
    link = post.ends()["activations_out"]
    assert isinstance(link, Sender), "data is sent"
    post.spans.begin()
    post.drive(_feed(feed, post, link), [link], partial(write_sample, post.telemetry, post.progress, None, None))
    post.tell("finished", summary={})
    link.close()


def _feed(feed: Feed, post: Post, link: Sender) -> Iterator[Wait | None]:
    def expect(steps: int) -> None:
        post.telemetry["expected"] = steps

    for message in feed.messages(lambda: post.stopping, expect):
        while not link.try_send(message):
            yield "wait_credit"
        if isinstance(message, Activation) and message.training:
            post.progress.steps += 1
            post.progress.samples += message.tensors[0].shape[0]
        yield None


def _report(post: Post, loop: Loop) -> None:
    """Write down how far the stage is, and tell the supervisor what came out of evaluations."""
    progress = post.progress
    write_sample(post.telemetry, progress, loop.stage, loop.links)
    for step, figures in progress.evaluations[progress.told :]:
        post.tell("evaluated", step=step, figures=figures)
    progress.told = len(progress.evaluations)


def _lag(progress: Progress) -> dict[str, Any] | None:
    """Return after how many steps gradients were learnt from."""
    if not progress.lags:
        return None
    return {"p50": progress.lag_p50, "max": max(progress.lags), "counts": sorted(progress.lags.items())}


def _summary(work: StageWork, post: Post, loop: Loop, group: Group, meter: ActivationMeter) -> dict[str, Any]:
    """Return the stage's entry in the run's summary."""
    stage, progress = loop.stage, post.progress
    quality, used = stage.signal.quality if stage else None, memory_used(post.place.device)
    return {
        "device": work.device,
        "layers": group.title,
        "parameters": sum(weight.numel() for weight in group.parameters()),
        **post.spans.shares(),
        "predictor": None if quality is None else {key: asdict(quality)[key] for key in PREDICTOR},
        "lag": _lag(progress),
        "skipped": stage.skipped if stage else 0,
        "samples": progress.samples,
        "seconds": post.spans.wall,
        "loss": progress.loss,
        "peak_activation_bytes": meter.peak(stage, loop.links.activations_in.capacity) if stage else 0,
        "device_memory_bytes": used and used[1],
    }
