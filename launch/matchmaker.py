"""The matchmaker: tells workers whose links go over ZeroMQ when those that they send to listen, and where."""

from __future__ import annotations

from collections.abc import Callable

from stepahead.workers import Wiring, ends_of

__all__ = ["Matchmaker"]


class Matchmaker:
    """Brings senders and receivers together.

    Args:
        wiring: Which links there are.
        tell: Says a word to a worker.
    """

    def __init__(self, wiring: Wiring, tell: Callable[..., None]) -> None:
        self._wiring = wiring
        self._tell = tell
        self._addresses: dict[str, str] = {}
        """Of the links whose receivers listen."""
        self._waiting: dict[str, list[str]] = {}
        """By worker, the links that it will connect to."""

    def join(self, name: str) -> None:
        """Take note that a worker has come."""
        ends = [end for end in ends_of(name, self._wiring.stages) if end.sends]
        links = [end.link for end in ends if self._wiring.kind(name, end.peer) == "zmq"]
        if links:
            self._waiting[name] = links
            self._match()

    def listen(self, link: str, address: str) -> None:
        """Take note that a receiver listens."""
        self._addresses[link] = address
        self._match()

    def _match(self) -> None:
        for name, links in list(self._waiting.items()):
            if self._addresses.keys() >= set(links):
                del self._waiting[name]
                self._tell("connect", name, addresses={link: self._addresses[link] for link in links})
