"""Predictors: small networks that guess the gradient at an activation, from it and from the label.

Every predictor works per sample (`signals.py` scales to and from the mean over the batch), starts at zero, and
can be built from an example of the activation it will see: `make_predictor("linear", h, classes=10)`.

    linear    W h + b                                               the cheapest that is good with labels
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
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import UsageError, did_you_mean

__all__ = [
    "MLP",
    "PREDICTORS",
    "Conv",
    "Critic",
    "LabelTable",
    "Linear",
    "LowRank",
    "Predictor",
    "PredictorRecipe",
    "Token",
    "Whole",
    "make_predictor",
    "row_norm",
]


LEAST = {"classes": 1, "rank": 1, "hidden": 1, "depth": 0, "kernel": 1, "ahead": 0}


class Predictor(nn.Module, ABC):
    """Maps an activation, and a label if it was made for one, to a gradient of the activation's shape."""

    classes: int | None

    @abstractmethod
    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor: ...


PredictorRecipe = str | Callable[[Tensor], Predictor]
"""A kind of predictor, or a function that makes one from an example of the activation."""


class LabelTable(nn.Module):
    """Adds one row of a table for each label: a one-hot label times a matrix, without the zeros.

    A negative label (an ignored place) adds nothing. A label of floating dtype is taken as a vector over the classes.
    """

    def __init__(self, classes: int, width: int, *, zero: bool = False) -> None:
        super().__init__()
        self.classes = classes
        bound = 0.0 if zero else (classes + width) ** -0.5
        table = torch.empty(classes + 1, width).uniform_(-bound, bound)
        table[classes] = 0.0  # the row of an ignored place; it stays zero
        self.weight = nn.Parameter(table)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        rows = self._rows(y)
        while rows.dim() < h.dim():  # one label for all places of a sequence
            rows = rows.unsqueeze(1)
        return h + rows

    def _rows(self, y: Tensor) -> Tensor:
        if y.is_floating_point():
            return y.to(self.weight.dtype) @ self.weight[: self.classes]
        return F.embedding(torch.where(y < 0, self.classes, y), self.weight, padding_idx=self.classes)


class Linear(Predictor):
    """One linear map on the last dimension."""

    def __init__(self, features: int, *, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.out = _zeroed(nn.Linear(features, features))
        self.label = LabelTable(classes, features, zero=True) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        return cls(_last_dimension(cls, h), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        return _add_label(self.label, self.out(h), y)


class LowRank(Predictor):
    """A linear map of small rank: two thin matrices in place of a square one."""

    def __init__(self, features: int, rank: int, *, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.down = nn.Linear(features, rank, bias=False)
        self.out = _zeroed(nn.Linear(rank, features))
        self.label = LabelTable(classes, features, zero=True) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        features = _last_dimension(cls, h)
        return cls(features, options.pop("rank", max(1, features // 8)), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        return _add_label(self.label, self.out(self.down(h)), y)


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
        self.out = _zeroed(nn.Linear(widths[-1], features))
        self.label = LabelTable(classes, widths[1] if depth else features, zero=not depth) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        features = _last_dimension(cls, h)
        return cls(features, options.pop("hidden", features), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        if not self.hidden:
            return _add_label(self.label, self.out(h), y)
        for index, (linear, norm) in enumerate(zip(self.hidden, self.norms, strict=True)):
            h = linear(h)
            if index == 0:
                h = _add_label(self.label, h, y)
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
        self.out = _zeroed(nn.Conv2d(widths[-1], channels, kernel, padding=kernel // 2))

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        if h.dim() != 4:
            raise UsageError(f"a conv predictor needs images [batch, channels, height, width], not {list(h.shape)}")
        return cls(h.shape[1], options.pop("hidden", h.shape[1]), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        if self.classes:
            h = torch.cat([h, self._planes(h, _required(y))], dim=1)
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
        self.out = _zeroed(nn.Linear(hidden, features))
        self.label = LabelTable(classes, hidden) if classes else None
        self.pictures = LabelTable(classes, features, zero=True) if classes else None

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        return cls(h[0].numel(), options.pop("hidden", 64), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        if self.classes and y is not None and y.dim() != 1 + y.is_floating_point():
            raise UsageError(f"a whole predictor takes one label for each sample, not {list(y.shape)}")
        hidden = self.norm(_add_label(self.label, self.into(h.flatten(1)), y)).relu()
        return _add_label(self.pictures, self.out(hidden), y).view_as(h)


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
        self.out = _zeroed(nn.Linear(hidden, features))

    @classmethod
    def like(cls, h: Tensor, classes: int | None = None, **options: Any) -> Self:
        if h.dim() != 3:
            raise UsageError(f"a token predictor needs sequences [batch, places, features], not {list(h.shape)}")
        return cls(h.shape[2], options.pop("hidden", 2 * h.shape[2]), classes=classes, **options)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        hidden = _add_label(self.label, self.into(self.norm(h)), y)
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
        self.scores = _zeroed(nn.Linear(hidden, classes or 1, bias=False))
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
        scores: Tensor = self.scores(F.gelu(_add_label(self.label, self.into(self.norm(h)), y)))
        return (
            scores.sum() if self.worth is None else (scores * self.worth(torch.zeros_like(scores), _required(y))).sum()
        )


PREDICTORS: dict[str, type[Linear | LowRank | MLP | Conv | Whole | Token | Critic]] = {
    "linear": Linear,
    "low-rank": LowRank,
    "mlp": MLP,
    "conv": Conv,
    "whole": Whole,
    "token": Token,
    "critic": Critic,
}


def make_predictor(kind: PredictorRecipe, h: Tensor, *, classes: int | None = None, **options: Any) -> Predictor:
    """Build a predictor of a kind for activations like `h`; "auto" picks linear, token or conv by the shape."""
    if not isinstance(kind, str):
        return kind(h).to(h.device)
    for name, value in {"classes": classes, **options}.items():
        if isinstance(value, int) and value < LEAST.get(name, value):
            raise UsageError(f"a {kind} predictor's {name} is {value}; it must be at least {LEAST[name]}")
    if kind == "auto":
        kind = {3: "token", 4: "conv"}.get(h.dim(), "linear")
    if kind not in PREDICTORS:
        raise UsageError(f"there is no predictor {kind!r}; {did_you_mean(kind, ['auto', *PREDICTORS])}")
    predictor = PREDICTORS[kind]
    known = set(inspect.signature(predictor).parameters) - {"features", "channels", "classes"}
    for option in options:
        if option not in known:
            raise UsageError(f"a {kind} predictor has no option {option!r}; {did_you_mean(option, sorted(known))}")
    return predictor.like(h, classes, **options).to(h.device)


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def row_norm(norm: str, width: int) -> nn.Module:
    """Return a norm for rows of features."""
    if norm == "batch":  # batch statistics only: a predictor runs twice a step, and never in an evaluation
        return _BatchNorm(width, track_running_stats=False)
    if norm == "layer":
        return nn.LayerNorm(width)
    raise UsageError(f"there is no norm {norm!r} for an mlp predictor; {did_you_mean(norm, ['batch', 'layer'])}")


class _BatchNorm(nn.BatchNorm1d):
    """Batch statistics; a single row, which has none, is only scaled."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if len(input) > 1 else input * self.weight + self.bias


def _add_label(table: LabelTable | None, h: Tensor, y: Tensor | None) -> Tensor:
    return h if table is None else table(h, _required(y))


def _required(y: Tensor | None) -> Tensor:
    if y is None:
        raise UsageError("a predictor made for labels got none; give the batches labels, or no classes to the signal")
    return y


def _last_dimension(kind: type[Predictor], h: Tensor) -> int:
    if h.dim() not in (2, 3):
        raise UsageError(
            f"a {kind.__name__} predictor needs rows [batch, features] or sequences [batch, places, features], "
            f"not {list(h.shape)}; for images use 'conv'"
        )
    return h.shape[-1]
