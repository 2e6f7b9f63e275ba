"""Predictors: small networks that guess the gradient at an activation, from it and from the label.

Every predictor works per sample (`signals.py` scales to and from the mean over the batch), starts at zero, and
can be built from an example of the activation it will see: `make_predictor("linear", h, classes=10)`.

    linear    W h + b                                               plain
    softmax   M (softmax(V h) - label)                              with labels: cheaper than linear, and better
    low-rank  U V h + b                                             a fraction of linear's cost for wide layers
    mlp       linear, norm, ReLU; `depth` times; then linear        paper A without labels: depth 2
    conv      convolution, BatchNorm, ReLU; `depth` times; conv     images, of any size
    whole     linear, norm, ReLU, linear on all of a sample at once small images: each place has weights of its own
    token     linear, label, GELU, linear at each place             sequences; `ahead` looks at later places too
    critic    the slope of what such a layer makes of h: a number   where gradients come very late

With `classes`, each also sees the label: what a one-hot label times a matrix would add, label planes for images.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .devices import reading_waits
from .errors import UsageError, did_you_mean
from .guessing import LabelTable, Predictor, add_label, required, row_norm, zeroed

__all__ = [
    "MLP",
    "PREDICTORS",
    "Conv",
    "Critic",
    "Linear",
    "LowRank",
    "PredictorRecipe",
    "Softmax",
    "Token",
    "Whole",
    "make_predictor",
]


LEAST = {"classes": 1, "rank": 1, "hidden": 1, "depth": 0, "kernel": 1, "ahead": 0}


PredictorRecipe = str | Callable[[Tensor], Predictor]
"""A kind of predictor, or a function that makes one from an example of the activation."""


class Linear(Predictor):
    """One linear map on the last dimension."""

    def __init__(self, features: int, *, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.out = zeroed(nn.Linear(features, features))
        self.label = LabelTable(classes, features, zero=True) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        return cls(_last_dimension(cls, h), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        return add_label(self.label, self.out(h), y)


class Softmax(Predictor):
    """The error that a classifier would make of it, mapped back: what the true gradient is at a classifier's input.

    It fades where a sample is told right, as the true one does, and no linear map of h and the label can. Rows and
    sequences have a classifier for each row and place, everything else one for a sample as a whole.
    """

    def __init__(self, features: int, *, classes: int | None = None) -> None:
        super().__init__()
        if not classes:
            raise UsageError("a softmax predictor compares with the label; give the number of classes")
        self.classes = classes
        self.scores = zeroed(nn.Linear(features, classes))
        self.out = zeroed(nn.Linear(classes, features))

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        return cls(h.shape[-1] if h.dim() in (2, 3) else h[0].numel(), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        parts = h if h.dim() in (2, 3) else h.flatten(1)
        rows = parts.flatten(0, -2)
        # a row for each class: with ten of them that is several times as fast as a column for each
        weight, bias = self.scores.parameters()
        said = torch.addmm(bias.unsqueeze(1), weight, rows.t()).softmax(dim=0)
        mapped: Tensor = self.out(_less_truth(said, _for_places(required(y), parts)).t())
        return mapped.view_as(h)


def _for_places(y: Tensor, parts: Tensor) -> Tensor:
    """Return the labels of all rows and places, one behind the other: numbers, or vectors over the classes."""
    single = y.dim() - 1 if y.is_floating_point() else y.dim()
    if single not in (1, parts.dim() - 1):
        raise UsageError(f"a softmax predictor takes one label for each sample or place, not {list(y.shape)}")
    if single < parts.dim() - 1:  # one for all places of a sequence
        y = y.unsqueeze(1).expand(-1, parts.shape[1], *y.shape[1:])
    return y.flatten(0, parts.dim() - 2)


def _less_truth(said: Tensor, y: Tensor) -> Tensor:
    """Return what was said less the label, a column for each row and place; zero where the label is to be ignored."""
    if y.is_floating_point():
        return said - y.t().to(said.dtype)
    y = y.long()
    if not reading_waits(y) and int(y.min()) >= 0:  # of a few numbers, and then three passes less over all of `said`
        return said.scatter_add(0, y.unsqueeze(0), said.new_full((1, 1), -1.0).expand(1, len(y)))
    counts = (y >= 0).to(said.dtype).unsqueeze(0)
    return (said * counts).scatter_add_(0, y.clamp(min=0).unsqueeze(0), -counts)


class LowRank(Predictor):
    """A linear map of small rank: two thin matrices in place of a square one."""

    def __init__(self, features: int, rank: int, *, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.down = nn.Linear(features, rank, bias=False)
        self.out = zeroed(nn.Linear(rank, features))
        self.label = LabelTable(classes, features, zero=True) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        features = _last_dimension(cls, h)
        return cls(features, options.pop("rank", max(1, features // 8)), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        return add_label(self.label, self.out(self.down(h)), y)


class MLP(Predictor):
    """Hidden layers with a norm and ReLU, then a linear map."""

    def __init__(
        self, features: int, hidden: int, *, depth: int = 1, norm: str = "layer", classes: int | None = None
    ) -> None:
        super().__init__()
        self.classes = classes
        widths = [features] + [hidden] * depth
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(row_norm(norm, hidden) for _ in range(depth))
        self.out = zeroed(nn.Linear(widths[-1], features))
        self.label = LabelTable(classes, widths[1] if depth else features, zero=not depth) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        features = _last_dimension(cls, h)
        return cls(features, options.pop("hidden", features), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        if not self.hidden:
            return add_label(self.label, self.out(h), y)
        for index, (linear, norm) in enumerate(zip(self.hidden, self.norms, strict=True)):
            h = linear(h)
            if index == 0:
                h = add_label(self.label, h, y)
            h = norm(h.flatten(0, -2)).view_as(h).relu()
        result: Tensor = self.out(h)
        return result


class Conv(Predictor):
    """Convolutions that keep the image's size; the label comes as one plane for each class."""

    def __init__(
        self, channels: int, hidden: int, *, depth: int = 1, kernel: int = 5, classes: int | None = None
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise UsageError(f"a conv predictor's kernel is {kernel}; it must be odd to keep the image's size")
        self.classes = classes
        widths = [channels + (classes or 0)] + [hidden] * depth
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(outputs, track_running_stats=False),
                nn.ReLU(),
            ]
        self.hidden = nn.Sequential(*layers)
        self.out = zeroed(nn.Conv2d(widths[-1], channels, kernel, padding=kernel // 2))

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        if h.dim() != 4:
            raise UsageError(f"a conv predictor needs images [batch, channels, height, width], not {list(h.shape)}")
        return cls(h.shape[1], options.pop("hidden", h.shape[1]), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        if self.classes:
            h = torch.cat([h, self._planes(h, required(y))], dim=1)
        result: Tensor = self.out(self.hidden(h))
        return result

    def _planes(self, h: Tensor, y: Tensor) -> Tensor:
        assert self.classes is not None
        if y.is_floating_point():
            rows = y
        else:
            rows = (y.unsqueeze(-1) == torch.arange(self.classes, device=y.device)).movedim(-1, 1)
        while rows.dim() < 4:
            rows = rows.unsqueeze(-1)
        return rows.to(h.dtype).expand(-1, -1, *h.shape[2:])


class Whole(Predictor):
    """A hidden layer that sees all of a sample at once, and a picture for each label.

    What a classifier above makes of an image depends on the place, and on what it takes the whole image for; of both
    a convolution knows nothing. Its weights grow with the image, its work hardly.
    """

    def __init__(self, features: int, hidden: int, *, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.into = nn.Linear(features, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.out = zeroed(nn.Linear(hidden, features))
        self.label = LabelTable(classes, hidden) if classes else None
        self.pictures = LabelTable(classes, features, zero=True) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        return cls(h[0].numel(), options.pop("hidden", 64), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        if self.classes and y is not None and y.dim() != 1 + y.is_floating_point():
            raise UsageError(f"a whole predictor takes one label for each sample, not {list(y.shape)}")
        hidden = self.norm(add_label(self.label, self.into(h.flatten(1)), y)).relu()
        return add_label(self.pictures, self.out(hidden), y).view_as(h)


class Token(Predictor):
    """A hidden layer at each place of a sequence.

    The gradient at a place depends on the targets of later places too, where attention or recurrence carries it
    there: with `ahead`, the hidden layer also sees that many places to the right, each unit with weights of its own.
    """

    def __init__(self, features: int, hidden: int, *, ahead: int = 0, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.ahead = ahead
        self.norm = nn.LayerNorm(features)
        self.into = nn.Linear(features, hidden)
        self.label = LabelTable(classes, hidden) if classes else None
        self.later = nn.Conv1d(hidden, hidden, ahead + 1, groups=hidden, bias=False) if ahead else None
        self.out = zeroed(nn.Linear(hidden, features))

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        if h.dim() != 3:
            raise UsageError(f"a token predictor needs sequences [batch, places, features], not {list(h.shape)}")
        return cls(h.shape[2], options.pop("hidden", 2 * h.shape[2]), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        hidden = add_label(self.label, self.into(self.norm(h)), y)
        if self.later is not None:
            hidden = hidden + self.later(F.pad(hidden.transpose(1, 2), (0, self.ahead))).transpose(1, 2)
        result: Tensor = self.out(F.gelu(hidden))
        return result


class Critic(Predictor):
    """The slope of a learnt number: a hidden layer's scores, and a row for the label that says what they are worth.

    What it guesses is the gradient of something, as what it is to guess is: few functions of h are. It learns by the
    gradients alone, through its own backward pass, and costs twice as much as `Token`.
    """

    def __init__(self, features: int, hidden: int, *, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.norm = nn.LayerNorm(features)
        self.into = nn.Linear(features, hidden)
        self.label = LabelTable(classes, hidden) if classes else None
        self.scores = zeroed(nn.Linear(hidden, classes or 1, bias=False))
        self.worth = LabelTable(classes, classes) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        features = _last_dimension(cls, h)
        return cls(features, options.pop("hidden", 2 * features), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        learns = torch.is_grad_enabled()
        with torch.enable_grad():
            at = h.detach().requires_grad_()
            value = self.value(at, y)
            (slope,) = torch.autograd.grad(value, at, create_graph=learns)
        return slope

    def value(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the number, over all samples, whose slope is the guess."""
        scores: Tensor = self.scores(F.gelu(add_label(self.label, self.into(self.norm(h)), y)))
        return (
            scores.sum() if self.worth is None else (scores * self.worth(torch.zeros_like(scores), required(y))).sum()
        )


PREDICTORS: dict[str, type[Linear | Softmax | LowRank | MLP | Conv | Whole | Token | Critic]] = {
    "linear": Linear,
    "softmax": Softmax,
    "low-rank": LowRank,
    "mlp": MLP,
    "conv": Conv,
    "whole": Whole,
    "token": Token,
    "critic": Critic,
}


def make_predictor(kind: PredictorRecipe, h: Tensor, *, classes: int | None = None, **options: Any) -> Predictor:
    """Build a predictor of a kind for activations like `h`.

    "auto" takes softmax for rows if there are labels, else linear; token for sequences, conv for images.
    """
    if not isinstance(kind, str):
        return kind(h).to(h.device)
    for name, value in {"classes": classes, **options}.items():
        if isinstance(value, int) and value < LEAST.get(name, value):
            raise UsageError(f"a {kind} predictor's {name} is {value}; it must be at least {LEAST[name]}")
    if kind == "auto":
        kind = {3: "token", 4: "conv"}.get(h.dim(), "softmax" if classes else "linear")
    if kind not in PREDICTORS:
        raise UsageError(f"there is no predictor {kind!r}; {did_you_mean(kind, ['auto', *PREDICTORS])}")
    predictor = PREDICTORS[kind]
    known = set(inspect.signature(predictor).parameters) - {"features", "channels", "classes"}
    for option in options:
        if option not in known:
            raise UsageError(f"a {kind} predictor has no option {option!r}; {did_you_mean(option, sorted(known))}")
    return predictor.like(h, classes, **options).to(h.device)


def _last_dimension(kind: type[Predictor], h: Tensor) -> int:
    if h.dim() not in (2, 3):
        raise UsageError(
            f"a {kind.__name__} predictor needs rows [batch, features] or sequences [batch, places, features], "
            f"not {list(h.shape)}; for images use 'conv'"
        )
    return h.shape[-1]
