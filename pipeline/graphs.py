"""Models that are graphs of modules: nodes with several inputs and outputs, skips, branches that join.

    Graph(
        {
            "users": Node(Tower, "input"),             # "input" is the raw batch; any number of nodes may use it
            "items": Node(Tower, "input"),
            "score": Node(Join, "users", "items"),     # called with both
        }
    )

A graph is laid out as a chain, each node after those whose outputs it uses, and that is cut as any chain: what is used
behind a cut crosses it (`bundles.py`). So all that stages and processes do for a chain they do for a graph.

A circle is one through time: `Earlier` is what a node put out a batch ago. Nodes that it joins are in one stage.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .bundles import Bundle, Value
from .earlier import PART, Time, check_earlier, node_of
from .errors import CutError
from .groups import Group, Layer, Layout, evaluating, works_in_place
from .nodes import INPUT, Node, check_nodes, check_use, earlier_among, in_order, name_of
from .recurrent import forget_evaluation
from .signals import LossFunction, SignalRecipe
from .states import State

__all__ = ["Graph", "GraphGroup", "Uncut", "Wires"]


class Graph(Layout):
    """Nodes by name.

    Args:
        nodes: In any order; where several could come next, the first of them does.
        outputs: What the loss is given: a tensor, or a tuple of several. Unless said, what the last node puts out.
        future: Guesses the gradient at what is used a batch later, from the values of all that a stage uses so; None
            lets no gradient through time. As in `Recurrent`.
        windows: After so many batches all that was earlier is forgotten: a new sequence begins.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        outputs: str | Sequence[str] | None = None,
        *,
        future: SignalRecipe | None = None,
        windows: int | None = None,
    ) -> None:
        if not isinstance(nodes, Mapping) or not nodes:
            raise CutError("a graph has no nodes, or not by name: Graph({'name': Node(module, 'input'), ..})")
        self.outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs or (list(nodes)[-1],))
        check_nodes(nodes)
        self.nodes = in_order(nodes)
        check_use(self.nodes, self.outputs)
        self.time = Time(tuple(dict.fromkeys(earlier_among(self.nodes))), future, windows)

    @property
    def wires(self) -> Wires:
        """What joins the nodes, in their order."""
        nodes = self.nodes.values()
        inputs = tuple(tuple(map(name_of, node.inputs)) for node in nodes)
        return Wires(tuple(self.nodes), inputs, tuple(node.loss for node in nodes), self.outputs, self.time)

    def layers(self, example: Tensor | None) -> tuple[Layer, ...]:
        """Return the nodes as a chain of layers; an example of the raw batch shows what they put out."""
        if not isinstance(example, Tensor):
            what = "" if example is None else f", a tensor, and not with a {type(example).__name__}"
            raise CutError(f"a graph is cut with an example of what goes in{what}: cut_model(graph, 2, example=x)")
        wires = _with_values(self.wires, self._plain, example)
        return tuple(replace(layer, wiring=wires) for layer in self._plain)

    def uncut(self, seed: int = 0) -> Uncut:
        """Return the graph as one module, which takes the weights that `stepahead export` writes."""
        return Uncut(self.wires, [layer.build(seed) for layer in self._plain])

    @property
    def _plain(self) -> list[Layer]:
        """The nodes as layers that do not know of each other."""
        return [Layer(name, index, node.source) for index, (name, node) in enumerate(self.nodes.items())]


@dataclass(frozen=True, slots=True)
class Wires:
    """Which node uses what."""

    names: tuple[str, ...]
    inputs: tuple[tuple[str, ...], ...]
    """For each node."""
    losses: tuple[LossFunction | None, ...]
    """Of its own, if it has one."""
    outputs: tuple[str, ...]
    time: Time
    values: tuple[Value, ...] = ()
    """All that may cross a cut, in the order in which it is made."""

    def crossing(self, position: int) -> Bundle:
        """Return what crosses a cut before the node at a position; behind the last one, what the graph puts out."""
        self._check_time(position)
        made = {INPUT, *self.names[:position]}
        used = dict.fromkeys(name for inputs in self.inputs[position:] for name in inputs) | dict.fromkeys(self.outputs)
        if position == len(self.names):
            return Bundle(tuple(map(self._value, self.outputs)))
        later = {edge.name for edge in self.time.edges}
        values = [self._value(name) for name in used if node_of(name) in made and name not in later]
        return Bundle(tuple(sorted(values, key=self.values.index)))

    def group(self, start: int, names: Sequence[str], modules: Sequence[nn.Module]) -> Group:
        return GraphGroup(self, start, names, modules)

    def run(self, start: int, modules: Sequence[nn.Module], values: dict[str, Any]) -> dict[str, Any]:
        """Run the nodes from a position on; add to the values by name what they put out."""
        for position, module in enumerate(modules, start):
            name, inputs = self.names[position], self.inputs[position]
            given = [self._input(name, each, values) for each in inputs]
            try:
                values |= _named(name, module(*given))
            except Exception as error:
                error.add_note(f"in node {name!r}, which was given {_shapes(inputs, given)}")
                raise
        return values

    def _check_time(self, position: int) -> None:
        """Refuse a cut between a node and one that uses what it put out a batch ago."""
        above = self.names[:position]
        for edge in self.time.edges:
            source = node_of(edge.source)
            for name, inputs in zip(self.names, self.inputs, strict=True):
                if edge.name in inputs and (name in above) != (source in above):
                    raise CutError(
                        f"node {name!r} uses what {source!r} put out a batch ago, so they cannot be cut apart; "
                        f"cut before or behind both"
                    )

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
        self._time = wires.time.among(names)
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
        values |= self._time.values(len(h), h.device, earlier)
        self._wires.run(self._start, list(self.layers), values)
        if self.training and torch.is_grad_enabled():
            losses = zip(self.names, self._wires.losses[self._start :], strict=False)
            self._node_losses = [(loss, values[name]) for name, loss in losses if loss is not None]
        return self._below.pack(values), self._time.state(values)

    def take_node_losses(self) -> list[tuple[LossFunction, Tensor]]:
        losses, self._node_losses = self._node_losses, []
        return losses


class Uncut(nn.Module):
    """A whole graph as one module: for those who use what was trained."""

    def __init__(self, wires: Wires, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._wires = wires
        for name, module in zip(wires.names, modules, strict=True):
            self.add_module(name, module)
        self._loop = wires.time.loop(self._run)
        self._outputs: tuple[Any, ...] = ()

    def reset(self) -> None:
        """Forget what was earlier."""
        if self._loop is not None:
            self._loop.reset()

    def forward(self, x: Tensor) -> Any:
        if self._loop is None:
            self._run(x, None)
        else:
            self._loop(x)
        outputs, self._outputs = self._outputs, ()
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, x: Tensor, earlier: State | None) -> tuple[Tensor, State]:
        modules = [self.get_submodule(name) for name in self._wires.names]  # one may be there under two names
        values = self._wires.time.values(len(x), x.device, earlier)
        values = self._wires.run(0, modules, {INPUT: x, **values})
        self._outputs = tuple(values[name] for name in self._wires.outputs)
        return x, self._wires.time.state(values)


def _apart(function: Callable[..., Tensor], bundle: Bundle, packed: Tensor, y: Tensor | None) -> Tensor:
    """Call a loss or a metric with a tuple of what a graph puts out."""
    return function(tuple(bundle.unpack(packed).values()), y)


def _named(name: str, out: Any) -> dict[str, Any]:
    """Return what a node puts out by the names that others use."""
    if not isinstance(out, tuple):
        return {name: out}
    return {name: out, **{f"{name}{PART}{number}": part for number, part in enumerate(out)}}


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


def _with_values(wires: Wires, layers: Sequence[Layer], example: Tensor) -> Wires:
    """Return the wires with what an example makes of each node, built and let go one by one."""
    x = example.clone()
    values: dict[str, Any] = {INPUT: x, **wires.time.values(len(x), x.device, None)}
    for position, layer in enumerate(layers):
        module = layer.build(0)
        with evaluating(module), torch.enable_grad(), _as_one_sentence(layer.name):
            values = {
                name: _apart_from_its_past(value) for name, value in wires.run(position, [module], values).items()
            }
        forget_evaluation(module)
    rows = len(example)
    later = {edge.name for edge in wires.time.edges}
    for edge in wires.time.edges:
        check_earlier(edge, values.get(edge.source), rows)
    found = [
        Value(name=name, shape=tuple(out.shape[1:]), dtype=out.dtype, learns=out.requires_grad)
        for name, out in values.items()
        if isinstance(out, Tensor) and out.dim() and len(out) == rows and name not in later
    ]
    return replace(wires, values=tuple(found))
