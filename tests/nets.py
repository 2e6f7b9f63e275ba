"""Small models, batches and stages for the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from stepahead.pipeline import (
    Activation,
    Gradient,
    Group,
    Message,
    Recipe,
    SignalRecipe,
    Stage,
    Truth,
    assemble,
    blend,
    critic,
    direct_feedback,
    feedback_alignment,
    keyed,
    kickback,
    local_critic,
    locked,
    probe,
    silent,
    sobolev,
    synthetic,
    synthetic_inputs,
)

Batch = tuple[Tensor, Tensor]
CLASSES = 5
adam = partial(Adam, lr=1e-2)
cdni = synthetic("linear", classes=CLASSES, optimizer=adam)
SIGNALS: dict[str, SignalRecipe] = {
    "synthetic": cdni,
    "without labels": synthetic("mlp", optimizer=adam),
    "every third batch": synthetic("linear", classes=CLASSES, optimizer=adam, every=3, rows=0.5),
    "locked": locked,
    "blend": blend(0.5, "linear", classes=CLASSES, optimizer=adam),
    "auto shape": synthetic(optimizer=adam),
    "probe": probe(loss=nn.CrossEntropyLoss(), optimizer=adam, classes=CLASSES),
    "silent": silent,
    "propagates": synthetic("linear", classes=CLASSES, optimizer=adam, propagates=True),
    "feedback alignment": feedback_alignment,
    "direct feedback": direct_feedback,
    "kickback": kickback,
    "critic": critic(classes=CLASSES, optimizer=adam),
    "sobolev": sobolev(classes=CLASSES, optimizer=adam),
    "local critic": local_critic(loss=nn.CrossEntropyLoss(), classes=CLASSES, optimizer=adam),
}
"""One of each kind."""
INPUTS = synthetic_inputs(optimizer=adam)


TRUTHS: dict[str, Truth] = {
    "learn": Truth(use="learn", every=2),
    "true-up": Truth(use="true-up", every=1),
    "true-up of each third": Truth(use="true-up", every=3, relay="sum"),
    "true-up from a graph": Truth(use="true-up", every=2, keep="graph", relay="sum"),
    "true-up, spread": Truth(use="true-up", every=2, spread=2.0),
    "replay": Truth(use="replay"),
    "stash": Truth(use="stash"),
}
"""One of each kind of use."""


class Block(nn.Module):
    """A pre-norm transformer block with causal attention and dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(0.1))

    def forward(self, h: Tensor) -> Tensor:
        places = h.shape[1]
        mask = torch.ones(places, places, dtype=torch.bool).triu(1)
        normed = self.norms[0](h)
        h = h + self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        out: Tensor = h + self.mlp(self.norms[1](h))
        return out


def mlp(inputs: int = 12, width: int = 16, depth: int = 4) -> nn.Sequential:
    """Linear and ReLU in turn, then a classifier."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(inputs if index == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def transformer(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(CLASSES, width), nn.Dropout(0.1), Block(width), Block(width), nn.Linear(width, CLASSES)
    )


def token_loss(output: Tensor, label: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), label.flatten())


def rows(count: int, size: int = 8, inputs: int = 12) -> list[Batch]:
    return [(torch.randn(size, inputs), torch.randint(CLASSES, (size,))) for _ in range(count)]


def images(count: int, size: int = 8) -> list[Batch]:
    return [(torch.randn(size, 2, 6, 6), torch.randint(CLASSES, (size,))) for _ in range(count)]


def sequences(count: int, size: int = 4, places: int = 6) -> list[Batch]:
    return [(torch.randint(CLASSES, (size, places)), torch.randint(CLASSES, (size, places))) for _ in range(count)]


def make_stages(groups: Sequence[Group], example: Batch, **recipe: Any) -> list[Stage]:
    optimizers = [adam if any(True for _ in group.parameters()) else None for group in groups]
    settings: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "signal": locked, "optimizer": optimizers}
    return assemble(groups, example, Recipe(**settings | recipe))


def plain_backprop(
    groups: Sequence[Group], batches: Sequence[Batch], loss: Callable[..., Tensor], *, seed: int = 0
) -> list[Group]:
    """Train a copy of the model, uncut: one graph, one optimizer. Only the random draws are keyed as in stages."""
    copies = deepcopy(list(groups))
    optimizer = adam([parameter for group in copies for parameter in group.parameters()])
    for step, (h, y) in enumerate(batches):
        for index, group in enumerate(copies):
            with keyed(seed, index, step):
                h = group(h)
        torch.autograd.backward(loss(h, y))
        optimizer.step()
        optimizer.zero_grad()
    return copies


def state(groups: Sequence[nn.Module]) -> list[Tensor]:
    """All weights and buffers, as they are now."""
    return [tensor.clone() for group in groups for tensor in group.state_dict().values()]


def assert_equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    """Equal to the bit."""
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b), f"largest difference {(a - b).abs().max()}"


def activation(
    step: int = 0, data: Tensor | None = None, label: Tensor | None = None, edge: str = "data>0"
) -> Activation:
    data = torch.randn(8, 12) if data is None else data
    label = torch.randint(CLASSES, (len(data),)) if label is None else label
    return Activation(edge=edge, step=step, tensors=(data,), label=label)


def sent(messages: Sequence[Message]) -> tuple[list[Activation], list[Gradient]]:
    """Sort what a stage sent."""
    return (
        [message for message in messages if isinstance(message, Activation)],
        [message for message in messages if isinstance(message, Gradient)],
    )
