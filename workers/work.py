"""What workers do at their posts: run a stage, or feed the pipeline."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

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

from .channels import LinkEnd, Sender
from .checkpoints import save_stage
from .feed import Feed
from .loop import Lag, Loop
from .memory import ActivationMeter
from .post import Post
from .spans import Wait

__all__ = ["StageWork", "feed_pipeline", "run_stage"]

LAST_STEPS = 10
PREDICTOR = ("cosine", "relative_error", "sign_error")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """What a worker needs to know to run its stage."""

    layers: tuple[Layer, ...]
    cut: Cut
    recipe: Recipe
    lag: Lag
    metrics: Mapping[str, Metric]
    device: str = "cpu"


def run_stage(work: StageWork, post: Post) -> None:
    """Run the place's stage until the pipeline stops; then save its weights and report."""
    index = post.place.stage
    group = build_group(work.layers, work.cut, index, seed=work.recipe.seed)
    links = post.links()
    held = _Held()

    def make_stage(batch: Activation) -> Stage:
        (output,) = example_outputs([group], batch.tensors[0])
        stage = work.recipe.stage(
            group, index, post.place.stages, output, batch.label, device=work.device, span=post.spans
        )
        held.begin(group, batch, output)
        post.spans.begin()
        return stage

    loop = Loop(make_stage, links, work.lag, post.spans, work.metrics)
    reporter = _Reporter(post, loop)
    post.drive(_watched(loop, post, reporter), links.ends, reporter.report)
    summary = _summary(work, post, loop, group)
    summary["peak_activation_bytes"] = held.peak(loop)
    summary["loss"] = reporter.last_loss()
    reporter.report()
    save_stage(post.place.run / "snapshots", group, index)
    post.tell("finished", name=post.place.name, steps=loop.progress.steps, summary=summary)
    for end in links.ends:
        end.close()


def feed_pipeline(feed: Feed, post: Post) -> None:
    """Send the data down, until there is no more or the launcher has had enough."""
    link = post.feed_link()
    ends: list[LinkEnd] = [link]
    post.drive(_feed(feed, post, link), ends, lambda: None)
    post.tell("finished", name=post.place.name, steps=post.steps, summary={})
    link.close()


def _feed(feed: Feed, post: Post, link: Sender) -> Iterator[Wait | None]:
    for message in feed.messages(lambda: post.stopping):
        while not link.try_send(message):
            yield "wait_credit"
        post.steps += isinstance(message, Activation) and message.training
        yield None


def _watched(loop: Loop, post: Post, reporter: _Reporter) -> Iterator[Wait | None]:
    """Run the loop, and look at every step that it made."""
    for wait in loop.run():
        if loop.progress.steps > post.steps:
            post.steps = loop.progress.steps
            reporter.take_step()
        yield wait


class _Held:
    """What the stage holds at most: a batch's graph, the outputs that wait for a gradient, the inputs in the link."""

    def __init__(self) -> None:
        self._meter: ActivationMeter | None = None
        self._input = self._output = 0

    def begin(self, group: Group, batch: Activation, output: Tensor) -> None:
        self._meter = ActivationMeter(group)
        label = 0 if batch.label is None else batch.label.nbytes
        self._input = sum(tensor.nbytes for tensor in batch.tensors) + label
        self._output = output.nbytes + label

    def peak(self, loop: Loop) -> int:
        queued = loop.links.activations_in.capacity * self._input
        saved = self._meter.saved_bytes if self._meter else 0
        return saved + loop.progress.most_unanswered * self._output + queued


class _Reporter:
    """Tells the supervisor how far the stage is, in the mean over the steps since it last did."""

    def __init__(self, post: Post, loop: Loop) -> None:
        self._post = post
        self._loop = loop
        self._losses: list[Tensor] = []
        self._last: deque[Tensor] = deque(maxlen=LAST_STEPS)
        self._evaluations = 0

    def last_loss(self) -> float | None:
        """Return the mean over the last steps."""
        return sum(map(float, self._last)) / len(self._last) if self._last else None

    def take_step(self) -> None:
        loss = self._loop.progress.loss
        if loss is not None:
            self._losses.append(loss)
            self._last.append(loss)

    def report(self) -> None:
        progress = self._loop.progress
        losses, self._losses = [float(loss) for loss in self._losses], []
        mean = sum(losses) / len(losses) if losses else float("nan")
        name, samples = self._post.place.name, progress.samples
        for steps, figures in progress.evaluations[self._evaluations :]:
            self._post.tell("evaluated", steps=steps, figures=figures)
        self._evaluations = len(progress.evaluations)
        self._post.control.report("progress", name=name, steps=progress.steps, samples=samples, loss=mean)


def _summary(work: StageWork, post: Post, loop: Loop, group: Group) -> dict[str, Any]:
    """Return the stage's entry in the run's summary."""
    stage, lags = loop.stage, loop.progress.lags
    quality = stage.signal.quality if stage else None
    return {
        "device": work.device,
        "layers": group.title,
        "parameters": sum(weight.numel() for weight in group.parameters()),
        **post.spans.shares(),
        "predictor": None if quality is None else {key: asdict(quality)[key] for key in PREDICTOR},
        "lag": {"p50": _median(lags), "max": max(lags)} if lags else None,
        "skipped": stage.skipped if stage else 0,
        "samples": loop.progress.samples,
        "seconds": post.spans.wall,
    }


def _median(counts: Counter[int]) -> int:
    half = counts.total() / 2
    for value in sorted(counts):
        half -= counts[value]
        if half <= 0:
            return value
    raise ValueError("there is no median of nothing")
