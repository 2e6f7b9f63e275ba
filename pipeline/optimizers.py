"""An optimizer for gradients that come late.

Adam gives every element of a weight about the same step. What all elements agree on then moves many times as fast as
anything else: the mean over samples, say. A gradient that is some steps old cannot hold that back, and the whole model
swings about it. Muon gives every direction of a matrix the same step: the swing is one among many, and the others go on
learning (docs/accuracy.md).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Muon, Optimizer

from .errors import UsageError
from .updates import OptimizerRecipe, needs_closure

__all__ = ["is_matrix", "muon"]

Which = Callable[[nn.Parameter], bool]


def is_matrix(weight: nn.Parameter) -> bool:
    """Return whether it is a matrix, or filters of a convolution, which are the rows of one."""
    return weight.dim() >= 2


def muon(lr: float, *, rest: OptimizerRecipe, momentum: float = 0.9, of: Which = is_matrix) -> OptimizerRecipe:
    """Return a recipe: Muon for matrices and convolutions, another optimizer for the rest.

    Args:
        lr: Of Muon, on the scale of AdamW's: about ten times what AdamW would get. Schedules that set momenta
            too (OneCycleLR, CyclicLR) do not know how to with two optimizers.
        rest: Makes the optimizer of what is no matrix.
        of: Which weights are Muon's. Tables of embeddings and the last layer do a little better with the rest.
    """
    return partial(_make, lr, rest, momentum, of)


def _make(lr: float, rest: OptimizerRecipe, momentum: float, of: Which, weights: Iterable[nn.Parameter]) -> Optimizer:
    weights = list(weights)
    matrices = [weight for weight in weights if of(weight)]
    others = [weight for weight in weights if not of(weight)]
    made = [rest(others)] if others else []
    if any(map(needs_closure, made)):
        raise UsageError(f"{type(made[0]).__name__} runs the model many times a step; Muon's other half cannot do that")
    if matrices:
        made.append(_Muon(matrices, lr=lr, weight_decay=0.0, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
    return made[0] if len(made) == 1 else _Several(made)


class _Muon(Muon):
    """torch's, which takes matrices alone, for convolutions too: each filter is a row."""

    def __init__(self, weights: Sequence[nn.Parameter], **options: Any) -> None:
        with _as_matrices(weights):
            super().__init__(weights, **options)

    def step(self, closure: Any = None) -> Any:
        with _as_matrices([weight for group in self.param_groups for weight in group["params"]]):
            return super().step(closure)  # type: ignore[no-untyped-call]


@contextmanager
def _as_matrices(weights: Iterable[nn.Parameter]) -> Generator[None]:
    """Let weights with more than two dimensions be matrices meanwhile."""
    whole = [(weight, weight.data, weight.grad) for weight in weights if weight.dim() > 2]
    for weight, data, grad in whole:
        _set(weight, data.flatten(1), None if grad is None else grad.flatten(1))
    try:
        yield
    finally:
        for weight, data, grad in whole:
            if weight.data_ptr() != data.data_ptr():  # channels last: the matrix is a copy
                data.copy_(weight.data.view(data.shape))
            _set(weight, data, grad)


def _set(weight: nn.Parameter, data: Tensor, grad: Tensor | None) -> None:
    weight.grad = None
    weight.data = data
    weight.grad = grad


class _Several(Optimizer):
    """Optimizers that step as one; a learning rate schedule sees the groups of all."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([weight for part in parts for group in part.param_groups for weight in group["params"]], {})
        self._join()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise UsageError("Muon with another optimizer takes no closure")
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._join()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]
