"""The switchboard: accepts workers, hands each its ends of the links, and brings what they report.

It makes the sockets of a link through shared memory when the first of its two workers joins, and keeps none of them: an
end that dies must be seen to die. Of the links' memory it keeps duplicates, so that a worker that replaces another can
take it over.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator
from typing import Any

from stepahead.workers import Control, Wiring, ends_of, make_sockets

__all__ = ["Switchboard"]


class Switchboard:
    """The supervisor's side of all control connections.

    Args:
        listener: The socket that workers connect to.
        wiring: Of which kind the links are.
        selector: Waits for what happens.
    """

    def __init__(self, listener: socket.socket, wiring: Wiring, selector: selectors.BaseSelector) -> None:
        self.wiring = wiring
        self.memory: dict[str, int] = {}
        """Duplicates of the descriptors of the memory of each link."""
        self._listener = listener
        self._selector = selector
        self._strangers: list[Control] = []
        self._members: dict[str, Control] = {}
        self._bells: dict[tuple[str, bool], socket.socket] = {}
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
                    self._keep(message["link"], descriptors[0])
                else:
                    yield name, message, descriptors
            if control.gone:
                self._drop(control)
                del self._members[name]

    def tell(self, kind: str, *names: str, **fields: Any) -> None:
        """Send a word to some workers, or to all."""
        for name, control in self._members.items():
            if not names or name in names:
                control.send(kind, timeout=0.5, **fields)

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
        ends = [end for end in ends_of(name, self.wiring.stages) if self.wiring.kind(name, end.peer) == "shm"]
        bells = {end.role: self._bell(end.link, end.sends) for end in ends}
        control.send("links", [bell.fileno() for bell in bells.values()], bells=list(bells))
        for bell in bells.values():
            bell.close()

    def _bell(self, link: str, sends: bool) -> socket.socket:
        """Return one socket of a link's pair; the other waits for its worker."""
        if (link, sends) not in self._bells:
            self._bells[link, True], self._bells[link, False] = make_sockets()
        return self._bells.pop((link, sends))

    def _keep(self, link: str, descriptor: int) -> None:
        if link in self.memory:
            os.close(self.memory[link])
        self.memory[link] = descriptor

    def _drop(self, control: Control) -> None:
        self._selector.unregister(control)
        control.close()
