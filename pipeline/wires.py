"""Wires: which node of a graph uses what, what of that crosses a cut, and how nodes are run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .bundles import Bundle, Value
from .earlier import ThroughTime
from .errors import CutError
from .groups import Group, Layer, evaluating, works_in_place
from .names import INPUT, PART, named, node_of
from .recurrent import forget_evaluation
from .signals import LossFunction
from .states import State

__all__ = ["GraphGroup", "Wires"]


@dataclass(frozen=True, slots=True)
class Wires:
    """Which node uses what."""

    names: tuple[str, ...]
    inputs: tuple[tuple[str, ...], ...]
    """For each node."""
    losses: tuple[LossFunction | None, ...]
    """Of its own, if it has one."""
    outputs: tuple[str, ...]
    time: ThroughTime
    values: tuple[Value, ...] = ()
    """All that may cross a cut, in the order in which it is made."""

    def crossing(self, position: int) -> Bundle:
        """Return what crosses a cut before the node at a position; behind the last one, what the graph puts out."""
        made = {INPUT, *self.names[:position]}
        used = dict.fromkeys(name for inputs in self.inputs[position:] for name in inputs) | dict.fromkeys(self.outputs)
        if position == len(self.names):
            return Bundle(tuple(map(self._value, self.outputs)))
        values = [self._value(name) for name in used if node_of(name) in made and name not in self.time.names]
        if not values and position:
            raise CutError(f"nothing crosses a cut before node {self.names[position]!r}; cut elsewhere")
        return Bundle(tuple(sorted(values, key=self.values.index)))

    def joined(self, position: int) -> str:
        """Say why there can be no cut before a node: one of both sides uses what the other put out a batch ago."""
        above = self.names[:position]
        for edge in self.time.edges:
            source = node_of(edge.source)
            for name, inputs in zip(self.names, self.inputs, strict=True):
                if edge.name in inputs and (name in above) != (source in above):
                    return (
                        f"node {name!r} uses what {source!r} put out a batch ago, so they cannot be cut apart; "
                        f"cut before or behind both"
                    )
        return ""

    def with_values(self, layers: Sequence[Layer], example: Tensor) -> Wires:
        """Return the wires with what an example makes of each node, built and let go one by one."""
        x = example.clone()
        first = self.time.values(x, None)
        learning = {name: value.requires_grad_().clone() for name, value in first.items()}  # what made them may learn
        values: dict[str, Any] = {INPUT: x, **learning}
        for position, layer in enumerate(layers):
            module = layer.build(0)
            with evaluating(module), torch.enable_grad(), _as_one_sentence(layer.name):
                values = {
                    name: _apart_from_its_past(value) for name, value in self.run(position, [module], values).items()
                }
            forget_evaluation(module)
        self.time.check(values, x)
        found = [
            Value(name=name, shape=tuple(out.shape[1:]), dtype=out.dtype, learns=out.requires_grad)
            for name, out in values.items()
            if isinstance(out, Tensor) and out.dim() and len(out) == len(example) and name not in self.time.names
        ]
        return replace(self, values=tuple(found))

    def group(self, start: int, names: Sequence[str], modules: Sequence[nn.Module]) -> Group:
        """Return the nodes from a position on as a stage runs them."""
        return GraphGroup(self, start, names, modules)

    def run(self, start: int, modules: Sequence[nn.Module], values: dict[str, Any]) -> dict[str, Any]:
        """Run the nodes from a position on; add to the values by name what they put out."""
        for position, module in enumerate(modules, start):
            name, inputs = self.names[position], self.inputs[position]
            given = [self._input(name, each, values) for each in inputs]
            try:
                values |= named(name, module(*given))
            except Exception as error:
                error.add_note(f"in node {name!r}, which was given {_shapes(inputs, given)}")
                raise
        return values

    def _input(self, name: str, wanted: str, values: Mapping[str, Any]) -> Any:
        if wanted in values:
            return values[wanted]
        node, _, part = wanted.partition(PART)
        raise CutError(f"node {name!r} uses {wanted!r}, and node {node!r} has no output {part}")

    def _value(self, name: str) -> Value:
        value = next((value for value in self.values if value.name == name), None)
        if value is None:
            node = node_of(name)
            if name in self.outputs:
                raise CutError(f"the graph puts out {name!r}, which is no tensor with a row for each sample")
            raise CutError(
                f"what node {node!r} puts out ({name!r}) cannot cross a cut: it is no tensor with a row for each "
                f"sample; keep {node!r} and those that use it in one stage"
            )
        return value


class GraphGroup(Group):
    """Consecutive nodes of a graph: it takes what crosses the cut above, and puts out what crosses the one below."""

    def __init__(self, wires: Wires, start: int, names: Sequence[str], modules: Sequence[nn.Module]) -> None:
        super().__init__(names, modules)
        self._above, self._below = wires.crossing(start), wires.crossing(start + len(names))
        self.below = self._below
        self._wires = wires
        self._start = start
        self._node_losses: list[tuple[LossFunction, Tensor]] = []
        self.has_node_losses = any(loss is not None for loss in wires.losses[start : start + len(names)])
        self._copies_input = any(map(works_in_place, modules))
        self._time = wires.time.among({each for used in wires.inputs[start : start + len(names)] for each in used})
        self._loop = self._time.loop(self._run)

    @property
    def title(self) -> str:
        return ", ".join(self.names)

    def for_outputs(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return function if self._below.is_single else partial(_apart, function, self._below)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self._run(h, None)[0] if self._loop is None else self._loop(h)
        return out

    def _run(self, h: Tensor, earlier: State | None) -> tuple[Tensor, State]:
        values: dict[str, Any] = dict(
            self._above.unpack(h.clone() if self._copies_input and self._above.is_single else h)
        )
        values |= self._time.values(h, earlier)
        self._wires.run(self._start, list(self.layers), values)
        if self.training and torch.is_grad_enabled():
            losses = zip(self.names, self._wires.losses[self._start :], strict=False)
            self._node_losses = [(loss, values[name]) for name, loss in losses if loss is not None]
        return self._below.pack(values), self._time.state(values)

    def take_node_losses(self) -> list[tuple[LossFunction, Tensor]]:
        losses, self._node_losses = self._node_losses, []
        return losses


def _apart(function: Callable[..., Tensor], bundle: Bundle, packed: Tensor, y: Tensor | None) -> Tensor:
    """Call a loss or a metric with a tuple of what a graph puts out."""
    return function(tuple(bundle.unpack(packed).values()), y)


def _apart_from_its_past(value: Any) -> Any:
    """Return the value without what autograd keeps of how it was made: the nodes before it can then be let go."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return value
    return value.detach().requires_grad_().clone()


@contextmanager
def _as_one_sentence(name: str) -> Generator[None]:
    """Say of a node that refuses what it is given what that is."""
    try:
        yield
    except CutError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        given = error.__notes__[-1].rpartition("given ")[2]
        raise CutError(f"node {name!r} cannot take {given}: {error}") from error


def _shapes(names: Sequence[str], given: Sequence[Any]) -> str:
    return ", ".join(
        f"{name} {list(each.shape) if isinstance(each, Tensor) else type(each).__name__}"
        for name, each in zip(names, given, strict=True)
    )
