"""What each layer costs: measured, so that a model can be cut into groups that take equally long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from .cuts import cut_by_cost
from .devices import clock
from .groups import Group, Layer, Model, build_groups, layers_of
from .predictors import Predictor
from .randomness import keyed

__all__ = ["LayerCost", "balance_model", "measure_costs"]

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Median seconds that a layer takes for one batch."""

    name: str
    forward: float
    backward: float
    """With the gradient at its input, but for the first layer, which needs none."""
    predictor: float
    """A predictor's guess at this layer's output, and its learning; 0 where no predictor was asked for."""
    output_bytes: int
    """The size of its output: what would cross a cut behind it."""

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def measure_costs(
    layers: Sequence[Layer],
    example: Tensor,
    *,
    predictor: Callable[[Tensor], Predictor] | None = None,
    label: Tensor | None = None,
    repeats: int = 5,
    seed: int = 0,
    device: torch.device = CPU,
) -> list[LayerCost]:
    """Run an example through each layer in turn, and time it.

    The layers' weights and buffers are afterwards as before.
    """
    costs: list[LayerCost] = []
    h = example.to(device)
    label = None if label is None else label.to(device)
    for layer in layers:
        with keyed(seed, "measure", layer.index, device=device):
            module = deepcopy(layer.build(seed)).to(device)
            forward, backward, output = _time_layer(module, h, layer.index > 0, repeats, clock(device))
            guess = _time_predictor(predictor(output), output, label, repeats, clock(device)) if predictor else 0.0
        costs.append(
            LayerCost(
                name=layer.name,
                forward=forward,
                backward=backward,
                predictor=guess,
                output_bytes=output.numel() * output.element_size(),
            )
        )
        h = output
    return costs


def balance_model(
    model: Model,
    stages: int,
    example: Tensor,
    *,
    predictor: Callable[[Tensor], Predictor] | None = None,
    label: Tensor | None = None,
    seed: int = 0,
) -> list[Group]:
    """Cut a model into groups whose slowest takes as little time as can be."""
    layers = layers_of(model)
    costs = measure_costs(layers, example, predictor=predictor, label=label, seed=seed)
    cut = cut_by_cost([cost.total for cost in costs], stages, [cost.predictor for cost in costs])
    return build_groups(layers, cut, seed=seed)


def _time_layer(
    module: nn.Module, h: Tensor, needs_gradient: bool, repeats: int, now: Callable[[], float]
) -> tuple[float, float, Tensor]:
    forward: list[float] = []
    backward: list[float] = []
    group = Group(["layer"], [module])
    output = h
    for _ in range(repeats + 1):  # the first warms up
        h_in = h.detach().requires_grad_(needs_gradient and h.is_floating_point())
        start = now()
        output = group(h_in)
        middle = now()
        if output.requires_grad:
            output.backward(torch.ones_like(output))
        backward.append(now() - middle)
        forward.append(middle - start)
        group.zero_grad()
    return median(forward[1:]), median(backward[1:]), output.detach()


def _time_predictor(
    predictor: Predictor, h: Tensor, label: Tensor | None, repeats: int, now: Callable[[], float]
) -> float:
    seconds: list[float] = []
    for _ in range(repeats + 1):
        start = now()
        with torch.no_grad():
            predictor(h, label)
        predictor(h, label).square().sum().backward()
        seconds.append(now() - start)
        predictor.zero_grad()
    return median(seconds[1:])
