"""What each layer costs: measured, so that a model can be cut into groups that take equally long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.optim import Adam

from .cuts import cut_by_cost
from .devices import clock, parse_device
from .errors import StepaheadError
from .groups import Group, Layer, Model, build_group, build_groups, joined_in, layers_of
from .parted import signal_of
from .randomness import keyed
from .signals import Needs, Signal, SignalRecipe
from .truth import StageTruth
from .updates import OptimizerRecipe, Updater

__all__ = ["LayerCost", "balance_model", "measure_costs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Median seconds that a layer takes for one batch."""

    name: str
    forward: float
    backward: float
    """With the gradient at its input, but for the first layer, which needs none."""
    optimizer: float
    signal: float
    """Asking and teaching a signal at this layer's output, in the mean over its batches; 0 where none was given, and
    infinite where it cannot be: one for images has no use for rows."""
    output_bytes: int
    """The size of its output: what would cross a cut behind it."""
    learns: bool = True
    """Whether it has weights to train."""

    @property
    def total(self) -> float:
        """Forward, backward and optimizer."""
        return self.forward + self.backward + self.optimizer

    def again(self, truth: StageTruth) -> float:
        """Return what it takes more for a batch, in the mean, in a stage that has the truth of some.

        To hand the truth up alone takes the gradient of the input: about half of a backward pass.
        """
        forward, handed_up = 0.0 if truth.keeps_graph else self.forward, self.backward / 2
        if truth.use == "replay":
            return forward
        if truth.use == "true-up":
            apart = handed_up / truth.above if truth.above and truth.relay == "again" else 0.0
            return (forward + self.backward) / truth.every + apart
        if truth.use == "learn" and truth.above:
            return (forward + handed_up) / truth.above
        return 0.0


def measure_costs(
    layers: Sequence[Layer],
    example: tuple[Tensor, Tensor | None],
    *,
    optimizer: OptimizerRecipe = Adam,
    signal: SignalRecipe | None = None,
    repeats: int = 5,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> list[LayerCost]:
    """Run a batch through copies of the layers in turn, and time them; with a signal, time that at each output too."""
    costs: list[LayerCost] = []
    place = parse_device(device)
    h, label = example[0].to(place), None if example[1] is None else example[1].to(place)
    for layer in layers:
        with keyed(seed, "measure", layer.index, device=place):
            group = deepcopy(build_group(layers, (1,) * len(layers), layer.index, seed=seed)).to(place)
            seconds, output = _time_layer(group, h, layer.index > 0, optimizer, repeats, clock(place))
            asked = _time_signal(group, signal, output, label, repeats, clock(place)) if signal else 0.0
        forward, backward, step = seconds
        costs.append(
            LayerCost(
                name=layer.name,
                forward=forward,
                backward=backward,
                optimizer=step,
                signal=asked,
                output_bytes=output.numel() * output.element_size(),
                learns=any(weight.requires_grad for weight in group.parameters()),
            )
        )
        h = output
    return costs


def balance_model(
    model: Model,
    stages: int,
    example: tuple[Tensor, Tensor | None],
    *,
    optimizer: OptimizerRecipe = Adam,
    signal: SignalRecipe | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> list[Group]:
    """Cut a model into groups whose slowest takes as little time as can be."""
    layers = layers_of(model, example[0])
    costs = measure_costs(layers, example, optimizer=optimizer, signal=signal, seed=seed, device=device)
    alone, signals = [cost.total for cost in costs], [cost.signal for cost in costs]
    cut = cut_by_cost(alone, stages, signals, joined_in(layers), learns=[cost.learns for cost in costs])
    return build_groups(layers, cut, seed=seed)


def _time_layer(
    group: Group, h: Tensor, needs_gradient: bool, optimizer: OptimizerRecipe, repeats: int, now: Callable[[], float]
) -> tuple[tuple[float, float, float], Tensor]:
    parameters = [parameter for parameter in group.parameters() if parameter.requires_grad]
    updater = Updater(parameters, optimizer) if parameters else None
    laps: list[tuple[float, float, float]] = []
    output = h
    for _ in range(repeats + 1):  # the first warms up
        h_in = h.detach().requires_grad_(needs_gradient and h.is_floating_point())
        start = now()
        output = group(h_in)
        forward = now()
        if output.requires_grad:
            torch.autograd.backward(output, torch.zeros_like(output))
        backward = now()
        if updater:
            updater.step()
            updater.clear()
        laps.append((forward - start, backward - forward, now() - backward))
    forwards, backwards, steps = zip(*laps[1:], strict=True)
    return (median(forwards), median(backwards), median(steps)), output.detach()


def _time_signal(
    group: Group, recipe: SignalRecipe, h: Tensor, label: Tensor | None, repeats: int, now: Callable[[], float]
) -> float:
    """Return the seconds that a signal takes for a batch; no end of them where it cannot be, for whatever reason."""
    try:
        return _time_rounds(signal_of(group, recipe, h, label), h, label, repeats, now)
    except (StepaheadError, RuntimeError, ValueError, TypeError, LookupError):  # a run that is cut there will say it
        return math.inf


def _time_rounds(signal: Signal, h: Tensor, label: Tensor | None, repeats: int, now: Callable[[], float]) -> float:
    round_length = getattr(signal, "every", 1)
    told = signal.answer.example(torch.zeros_like(h))
    seconds: list[float] = []
    for turn in range(repeats + 1):
        start = now()
        for step in range(turn * round_length, (turn + 1) * round_length):
            if signal.needs is Needs.NOTHING:
                signal.gradient(h, label)
            if signal.wants(step):
                signal.learn(h, label, told[0], step, *told[1:])
        seconds.append((now() - start) / round_length)
    return median(seconds[1:])
