"""What the outputs of a graph's nodes are called.

"name" is what a node puts out, "name:1" the second part of it where that is a tuple; "name:earlier" is what it put out
a batch ago, and "input" the raw batch.
"""

from __future__ import annotations

from typing import Any

__all__ = ["EARLIER", "INPUT", "PART", "named", "node_of"]

INPUT = "input"
PART = ":"
"""In no node's name."""
EARLIER = f"{PART}earlier"


def node_of(name: str) -> str:
    """Return the node that an output belongs to."""
    return name.partition(PART)[0]


def named(name: str, out: Any) -> dict[str, Any]:
    """Return what a node puts out by the names that others use."""
    if not isinstance(out, tuple):
        return {name: out}
    return {name: out, **{f"{name}{PART}{number}": part for number, part in enumerate(out)}}
