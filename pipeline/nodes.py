"""Nodes of a graph: a module and what it is called with; in which order they run, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from .earlier import Earlier
from .errors import CutError, did_you_mean
from .groups import LayerSource
from .names import INPUT, PART, node_of
from .signals import LossFunction

__all__ = ["Node", "check_nodes", "check_use", "earlier_among", "in_order", "name_of"]

RESERVED = frozenset({*dir(nn.Module()), "reset"})


class Node:
    """A module and what it is called with.

    Args:
        source: The module, or a function that makes it.
        inputs: Names of nodes, or "input"; "name:1" is the second output of a node that returns a tuple. `Earlier` is
            what a node put out a batch ago.
        loss: One of the node's own: a function of (output, label). Its gradient is there at once, wherever the node is.
    """

    def __init__(self, source: LayerSource, *inputs: str | Earlier, loss: LossFunction | None = None) -> None:
        self.source = source
        self.inputs = inputs
        self.loss = loss


def check_nodes(nodes: Mapping[str, Node]) -> None:
    """Refuse what is no node, names that cannot be, and what no node is called."""
    for name, node in nodes.items():
        if not isinstance(node, Node):
            raise CutError(f"node {name!r} is a {type(node).__name__}; write Node(module, 'input', ..)")
        if not isinstance(name, str) or name == INPUT or not name or any(sign in name for sign in (PART, ".", ",")):
            raise CutError(f"a node cannot be called {name!r}: {INPUT!r} is the raw batch, and . : , mean something")
        if name.startswith("_") or name in RESERVED:
            raise CutError(f"a node cannot be called {name!r}: every module has something of that name")
        if isinstance(node.loss, nn.Module) and next(node.loss.parameters(), None) is not None:
            raise CutError(
                f"the loss of node {name!r} has parameters that nothing would train; make them part of the node"
            )
        if not node.inputs:
            raise CutError(f"node {name!r} is not connected: say what it is called with, {INPUT!r} for example")
        for wanted in node.inputs:
            _check_known(f"node {name!r} uses", wanted.source if isinstance(wanted, Earlier) else wanted, nodes)
            if isinstance(wanted, Earlier):
                _check_earlier(name, wanted)


def _check_known(who: str, wanted: str, nodes: Mapping[str, Node]) -> None:
    if not isinstance(wanted, str):
        raise CutError(
            f"{who} {wanted!r}, which is no name: Node(module, 'a', 'b') is called with what a and b put out"
        )
    node = node_of(wanted)
    if node != INPUT and node not in nodes:
        raise CutError(f"{who} {node!r}, which is no node; {did_you_mean(node, [INPUT, *nodes])}")


def _check_earlier(name: str, wanted: Earlier) -> None:
    if node_of(wanted.source) == INPUT:
        raise CutError(f"node {name!r} uses {INPUT!r} of a batch ago; let the data bring it")
    if not wanted.shape or any(not isinstance(size, int) or size < 1 for size in wanted.shape):
        raise CutError(
            f"node {name!r} uses {wanted.source!r} of a batch ago with the shape {list(wanted.shape)}; give the sizes "
            f"of one sample, as in Earlier({wanted.source!r}, 16)"
        )


def check_use(nodes: Mapping[str, Node], outputs: Sequence[str]) -> None:
    """Refuse outputs that there are not, or twice, and nodes that nothing comes of."""
    if len(set(outputs)) < len(outputs):
        raise CutError(f"the graph puts out {', '.join(map(str, outputs))}: each only once")
    for wanted in outputs:
        _check_known("the graph puts out", wanted, nodes)
    used = {name for name, node in nodes.items() if node.loss is not None}
    used |= {node_of(name_of(wanted)) for node in nodes.values() for wanted in node.inputs}
    used |= {node_of(wanted) for wanted in outputs}
    for name in nodes:
        if name not in used:
            raise CutError(f"nothing uses node {name!r}; name it among the graph's outputs, or leave it out")


def in_order(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return the nodes, each behind those that it uses."""
    left, ordered = dict(nodes), dict[str, Node]()
    while left:
        needs = {name: _needs(node) & set(left) for name, node in left.items()}
        ready = next((name for name, needed in needs.items() if not needed), None)
        if ready is None:
            circle = _circle(needs)
            raise CutError(
                f"nodes {' -> '.join(circle)} use each other in a circle; within a batch there can be none: let one of "
                f"them use what another put out a batch ago, Earlier({circle[0]!r}, width)"
            )
        ordered[ready] = left.pop(ready)
    return ordered


def _needs(node: Node) -> set[str]:
    """Return the nodes whose outputs a node uses within a batch."""
    return {node_of(wanted) for wanted in node.inputs if isinstance(wanted, str)}


def name_of(wanted: str | Earlier) -> str:
    """Return what an input of a node is called."""
    return wanted.name if isinstance(wanted, Earlier) else wanted


def earlier_among(nodes: Mapping[str, Node]) -> list[Earlier]:
    """Return what nodes use of a batch ago."""
    return [wanted for node in nodes.values() for wanted in node.inputs if isinstance(wanted, Earlier)]


def _circle(needs: Mapping[str, set[str]]) -> list[str]:
    """Return a circle among nodes of which each needs another; the first comes again at its end."""
    path = [next(iter(needs))]
    while (following := min(needs[path[-1]])) not in path:
        path.append(following)
    return [following, *reversed(path[path.index(following) :])]
