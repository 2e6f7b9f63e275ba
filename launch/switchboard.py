"""The switchboard: accepts workers, hands each its ends of the links, and brings what they report.

It makes the sockets of a link through shared memory when the first of its two workers joins, and keeps none of them: an
end that dies must be seen to die. Of the links' memory it keeps duplicates, so that a worker that replaces another can
take it over. Over ZeroMQ, a worker is told to connect as soon as all listen that it sends to.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator
from typing import Any

from stepahead.workers import Control, End, Wiring, ends_of, make_sockets

__all__ = ["Switchboard"]

Link = tuple[str, str]
"""The name of an edge, and what flows: "activations" or "gradients"."""


class Switchboard:
    """The supervisor's side of all control connections.

    Args:
        listener: The socket that workers connect to.
        wiring: Of which kind the links are.
        selector: Waits for what happens.
    """

    def __init__(self, listener: socket.socket, wiring: Wiring, selector: selectors.BaseSelector) -> None:
        self.wiring = wiring
        self.memory: dict[Link, int] = {}
        """Duplicates of the descriptors of the links' memory."""
        self._listener = listener
        self._selector = selector
        self._strangers: list[Control] = []
        self._members: dict[str, Control] = {}
        self._bells: dict[tuple[Link, bool], socket.socket] = {}
        self._listening: set[Link] = set()
        self._connecting: set[str] = set()
        """Who waits for others to listen."""
        selector.register(listener, selectors.EVENT_READ)

    def messages(self) -> Iterator[tuple[str, dict[str, Any], list[int]]]:
        """Accept whoever waits, and yield what has come, each with the worker's name and what was attached."""
        self._accept()
        for control in list(self._strangers):
            control.refresh()
            for message, descriptors in control.take(1):  # the rest of what it said is a member's
                self._strangers.remove(control)
                self._join(message["name"], control)
                yield message["name"], message, descriptors
            if control.gone and control in self._strangers:
                self._drop(control)
                self._strangers.remove(control)
        for name, control in list(self._members.items()):
            control.refresh()
            for message, descriptors in control.take():
                if message["kind"] == "memory":
                    self._keep((message["edge"], message["flow"]), descriptors[0])
                elif message["kind"] == "listening":
                    self._listening.add((message["edge"], message["flow"]))
                    self._let_connect()
                else:
                    yield name, message, descriptors
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
        for bell in self._bells.values():
            bell.close()
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
        bells = {end.role: self._bell((end.edge, end.flow), end.sends) for end in self._ends(name, "shm")}
        control.send("links", [bell.fileno() for bell in bells.values()], bells=list(bells))
        for bell in bells.values():
            bell.close()
        self._connecting.add(name)
        self._let_connect()

    def _ends(self, name: str, kind: str) -> list[End]:
        return [end for end in ends_of(name, self.wiring.stages) if self.wiring.kind(name, end.peer) == kind]

    def _let_connect(self) -> None:
        """Tell those to connect who have somebody to connect to, and all of them listen."""
        for name in list(self._connecting):
            sends = {(end.edge, end.flow) for end in self._ends(name, "zmq") if end.sends}
            if sends <= self._listening:
                self._connecting.remove(name)
                if sends:
                    self.tell("connect", name)

    def _bell(self, link: Link, sends: bool) -> socket.socket:
        """Return one socket of a link's pair; the other waits for its worker."""
        if (link, sends) not in self._bells:
            self._bells[link, True], self._bells[link, False] = make_sockets()
        return self._bells.pop((link, sends))

    def _keep(self, link: Link, descriptor: int) -> None:
        if link in self.memory:
            os.close(self.memory[link])
        self.memory[link] = descriptor

    def _drop(self, control: Control) -> None:
        self._selector.unregister(control)
        control.close()
