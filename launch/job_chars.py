"""The job `chars`: a small GPT that learns to write, character by character, on the prose that comes with Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import islice
from pydoc_data import topics
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from stepahead.pipeline import Batch, OptimizerRecipe, Truth, UsageError, accuracy, muon, seed_for, synthetic
from stepahead.pipeline.optimizers import is_matrix

from .job import Job
from .sequences import Text, numbered

__all__ = ["job"]

WARM_UP = 100
LEAST_RATE = 0.1
"""Of the learning rate, at the end."""
MATRICES, REST = 12.0, 0.3
"""Times the learning rate: Muon's, and AdamW's for what is no matrix or is a table."""
TABLE = "is_table"
"""Marks matrices that have a row for each character or place: they are none of a block's."""
TEST_BATCHES = 50
TEST_SHARE = 0.1


def job(
    width: int = 96,
    heads: int = 4,
    blocks: int = 4,
    window: int = 64,
    batch: int = 32,
    steps: int = 1000,
    learning_rate: float = 1e-3,
) -> Job:
    """Return the job.

    Args:
        width: Features at each place.
        heads: Attention heads; the width is a multiple of them.
        blocks: Transformer blocks, each two layers: attention, and a hidden layer.
        window: Characters that the model sees at once.
        batch: Windows in a batch.
        steps: Batches to train on.
        learning_rate: The highest, after the warm-up, as AdamW alone would take it.
    """
    _check(width=width, heads=heads, blocks=blocks, window=window, batch=batch, steps=steps)
    if width % heads:
        raise UsageError(f"width {width} does not divide into {heads} heads; make it a multiple")
    text = prose()
    characters, train, test = len(text.alphabet), text.train, text.test
    if window >= len(test):
        raise UsageError(f"a window of {window} does not fit into the test text; use less than {len(test)}")
    rate = partial(LambdaLR, lr_lambda=partial(share_of_rate, steps))
    return Job(
        name="chars",
        model=model(characters, width, heads, blocks, window),
        data=partial(epoch, train, window, batch, int(torch.randint(2**31, ()))),  # so the order follows the run's seed
        test=list(islice(windows(test, window, batch), TEST_BATCHES)),
        loss=loss,
        metrics={"accuracy": accuracy, "bits": bits},
        optimizer=optimizer(learning_rate),
        lr_schedule=rate,
        signal=synthetic(
            "token",
            classes=characters,
            optimizer=partial(AdamW, lr=learning_rate, weight_decay=0.0, fused=True),
            lr_schedule=rate,
        ),
        truth=Truth(use="true-up", every=1, full_rate_lag=6),
        classes=characters,
        stages=4,
        steps=steps,
        evaluate_every=max(1, steps // 5),
    )


class Start(nn.Module):
    """Characters and their places as vectors, of about 1 in each feature.

    With small ones (0.02, say) nearly all that stages put out is what their layers add; that moves with every step, and
    late gradients train it badly (docs/accuracy.md).
    """

    def __init__(self, characters: int, width: int, window: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Embedding(window, width)
        for table in (self.characters, self.places):
            setattr(table.weight, TABLE, True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.characters(x) + self.places.weight[: x.shape[1]]
        return out


class End(nn.Module):
    """A score for each character."""

    def __init__(self, width: int, characters: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, characters)
        setattr(self.out.weight, TABLE, True)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(h))
        return out


class Attention(nn.Module):
    """The first half of a transformer block: each place adds what it finds at the places up to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self.into(self.norm(h)).unflatten(2, (3 * self.heads, -1)).transpose(1, 2).chunk(3, dim=1)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = h + self.out(found.transpose(1, 2).flatten(2))
        return out


class Hidden(nn.Module):
    """The second half: a hidden layer at each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.out(F.gelu(self.into(self.norm(h))))
        return out


def model(characters: int, width: int, heads: int, blocks: int, window: int) -> list[Callable[[], nn.Module]]:
    """Return functions that make the layers: each worker calls only its own.

    A block is two layers. What begins and what ends the network shares a layer with one of them, so that an even cut
    costs each stage about the same.
    """
    attention, hidden = partial(Attention, width, heads), partial(Hidden, width)
    halves: list[Callable[[], nn.Module]] = [attention, hidden] * blocks
    start, end = partial(Start, characters, width, window), partial(End, width, characters)
    return [partial(chain, start, attention), *halves[1:-1], partial(chain, hidden, end)]


def chain(*layers: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(*(layer() for layer in layers))


def optimizer(learning_rate: float) -> OptimizerRecipe:
    """Return Muon for the blocks' matrices, AdamW for the rest: with AdamW alone it learns little from late gradients.

    Args:
        learning_rate: As AdamW alone would take it.
    """
    rest = partial(AdamW, lr=REST * learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    return muon(MATRICES * learning_rate, rest=rest, of=is_in_a_block)


def is_in_a_block(weight: nn.Parameter) -> bool:
    return is_matrix(weight) and not hasattr(weight, TABLE)


def loss(output: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), label.flatten())


def bits(output: Tensor, label: Tensor) -> Tensor:
    """Return how many bits it takes to tell the next character, in the mean."""
    return loss(output, label) / math.log(2)


def share_of_rate(steps: int, step: int) -> float:
    """Return the learning rate as a share of the highest: a short rise, then half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = min(1.0, (step - WARM_UP) / max(1, steps - WARM_UP))
    return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * done)) / 2


def epoch(text: Tensor, window: int, batch: int, seed: int, number: int) -> Iterator[Batch]:
    """Yield the text's windows in random order, in whole batches; every epoch cuts it elsewhere."""
    generator = torch.Generator().manual_seed(seed_for(seed, "epoch", number))
    return windows(text[number % window :], window, batch, generator)


def windows(text: Tensor, window: int, batch: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
    """Yield batches of windows with what follows each character in them.

    Given a generator they are in random order, and the last batch is filled up with the first of them: schedules that
    cut batches take whole ones alone.
    """
    starts = torch.arange(0, len(text) - window, window)
    if generator is not None:
        starts = starts[torch.randperm(len(starts), generator=generator)]
        whole = len(starts) + -len(starts) % batch
        starts = starts.repeat(-(-whole // len(starts)))[:whole]
    for some in starts.split(batch):
        rows = some.unsqueeze(1) + torch.arange(window)
        yield text[rows], text[rows + 1]


@cache
def prose() -> Text:
    """Return the prose that comes with Python."""
    pages = cast(Mapping[str, str], topics.topics)
    text = "\n".join(pages[name] for name in sorted(pages))
    return numbered(text, TEST_SHARE)


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"the job's {name} is {value}; it must be at least 1")
