"""The switchboard: accepts workers, hands each its ends of the links, and brings what they report.

It makes the sockets of each link when the first of its two workers joins, and keeps none of them: an end that dies must
be seen to die. Of the links' memory it keeps duplicates, so that a worker that replaces another can take it over.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator
from typing import Any

from stepahead.pipeline import edge_name
from stepahead.workers import DATA, Control, make_sockets

__all__ = ["Switchboard"]

Link = tuple[str, str]
"""The name of an edge, and which way: "activations" or "gradients"."""


class Switchboard:
    """The supervisor's side of all control connections.

    Args:
        listener: The socket that workers connect to.
        stages: How many stages there are.
        selector: Waits for what happens.
    """

    def __init__(self, listener: socket.socket, stages: int, selector: selectors.BaseSelector) -> None:
        self.stages = stages
        self.memory: dict[Link, int] = {}
        """Duplicates of the descriptors of the links' memory."""
        self._listener = listener
        self._selector = selector
        self._strangers: list[Control] = []
        self._members: dict[str, Control] = {}
        self._ends: dict[tuple[Link, str], socket.socket] = {}
        selector.register(listener, selectors.EVENT_READ)

    def messages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Accept whoever waits, and yield what has come, each with the worker's name."""
        self._accept()
        for control in list(self._strangers):
            control.refresh()
            for message, _ in control.take("hello"):
                self._strangers.remove(control)
                self._join(message["name"], control)
                yield message["name"], message
            if control.gone and control in self._strangers:
                self._drop(control)
                self._strangers.remove(control)
        for name, control in list(self._members.items()):
            control.refresh()
            for message, descriptors in control.take():
                if message["kind"] == "memory":
                    self._keep((message["edge"], message["way"]), descriptors[0])
                else:
                    yield name, message
            if control.gone:
                self._drop(control)
                del self._members[name]

    def tell(self, kind: str, *names: str) -> None:
        """Send a word to some workers, or to all."""
        for name, control in self._members.items():
            if not names or name in names:
                control.send(kind, timeout=0.5)

    def close(self) -> None:
        """Let go of all connections and of the links' memory."""
        for control in [*self._strangers, *self._members.values()]:
            self._drop(control)
        for end in self._ends.values():
            end.close()
        for descriptor in self.memory.values():
            os.close(descriptor)
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            control = Control(connection, "a worker")
            self._strangers.append(control)
            self._selector.register(control, selectors.EVENT_READ)

    def _join(self, name: str, control: Control) -> None:
        self._members[name] = control
        ends = {role: self._end(link, side) for role, (link, side) in _roles(name, self.stages).items()}
        control.send("links", [end.fileno() for end in ends.values()], ends=list(ends))
        for end in ends.values():
            end.close()

    def _end(self, link: Link, side: str) -> socket.socket:
        if (link, side) not in self._ends:
            self._ends[link, "sender"], self._ends[link, "receiver"] = make_sockets()
        return self._ends.pop((link, side))

    def _keep(self, link: Link, descriptor: int) -> None:
        if link in self.memory:
            os.close(self.memory[link])
        self.memory[link] = descriptor

    def _drop(self, control: Control) -> None:
        self._selector.unregister(control)
        control.close()


def _roles(name: str, stages: int) -> dict[str, tuple[Link, str]]:
    """Return a worker's ends of links by their role."""
    if name == DATA:
        return {"activations_out": ((edge_name(-1, 0), "activations"), "sender")}
    stage = int(name)
    above, below = edge_name(stage - 1, stage), edge_name(stage, stage + 1)
    roles: dict[str, tuple[Link, str]] = {"activations_in": ((above, "activations"), "receiver")}
    if stage > 0:
        roles["gradients_out"] = ((above, "gradients"), "sender")
    if stage < stages - 1:
        roles["activations_out"] = ((below, "activations"), "sender")
        roles["gradients_in"] = ((below, "gradients"), "receiver")
    return roles
