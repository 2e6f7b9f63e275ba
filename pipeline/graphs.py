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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .earlier import ThroughTime
from .errors import CutError
from .groups import Layer, Layout
from .names import INPUT
from .nodes import Node, check_nodes, check_use, earlier_among, in_order, name_of
from .recurrent import recurrent_in
from .signals import SignalRecipe
from .states import State
from .wires import Wires

__all__ = ["Graph", "Uncut"]


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
        self.time = ThroughTime(tuple(dict.fromkeys(earlier_among(self.nodes))), future, windows)
        self.time.check_options()

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
        wires = self.wires.with_values(self._plain, example)
        return tuple(replace(layer, wiring=wires, joined=wires.joined(layer.index)) for layer in self._plain)

    def uncut(self, seed: int = 0) -> Uncut:
        """Return the graph as one module, which takes the weights that `stepahead export` writes."""
        return Uncut(self.wires, [layer.build(seed) for layer in self._plain])

    @property
    def _plain(self) -> list[Layer]:
        """The nodes as layers that do not know of each other."""
        return [Layer(name, index, node.source) for index, (name, node) in enumerate(self.nodes.items())]


class Uncut(nn.Module):
    """A whole graph as one module: for those who use what was trained."""

    def __init__(self, wires: Wires, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._wires = wires
        for name, module in zip(wires.names, modules, strict=True):
            self.add_module(name, module)
        self._loop = wires.time.loop(self._run)
        self._outputs: tuple[Any, ...] = ()
        """Of the last run: a core returns one tensor, and a graph may put out several."""

    def reset(self) -> None:
        """Begin new sequences: forget what was earlier, and what recurrent nodes carry."""
        for layer in recurrent_in(self):
            layer.reset()

    def forward(self, x: Tensor) -> Any:
        if self._loop is None:
            self._run(x, None)
        else:
            self._loop(x)
        outputs, self._outputs = self._outputs, ()
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, x: Tensor, earlier: State | None) -> tuple[Tensor, State]:
        modules = [self.get_submodule(name) for name in self._wires.names]  # one may be there under two names
        values = self._wires.run(0, modules, {INPUT: x, **self._wires.time.values(x, earlier)})
        self._outputs = tuple(values[name] for name in self._wires.outputs)
        return x, self._wires.time.state(values)
