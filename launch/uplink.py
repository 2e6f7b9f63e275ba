"""The line between a host's outpost and the supervisor: words, with bytes beside them, over ZeroMQ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stepahead.pipeline import FrameError
from stepahead.workers import Carrier, bytes_of, pack, unpack

__all__ = ["Uplink", "Word"]

Word = tuple[dict[str, Any], list[bytes]]


class Uplink:
    """One end of the line; both are alike."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    def fileno(self) -> int:
        return self._carrier.fileno()

    @property
    def gone(self) -> bool:
        """Whether the other end is no more; ask before `take`, which then has all that came before."""
        return self._carrier.gone

    def send(self, word: dict[str, Any], beside: Sequence[bytes] = ()) -> None:
        """Send a word, without waiting."""
        values = [torch.frombuffer(bytearray(each or b"\0"), dtype=torch.uint8)[: len(each)] for each in beside]
        self._carrier.send(pack(word), values)

    def take(self) -> list[Word]:
        """Return the words that have come."""
        self._carrier.refresh()
        return [(_word(head), [bytes_of(value) for value in values]) for head, values in self._carrier.take()]

    def close(self) -> None:
        self._carrier.close()


def _word(head: bytes) -> dict[str, Any]:
    try:
        word: Any = unpack(head)
    except Exception as error:  # msgpack raises a dozen types for what is not msgpack
        raise FrameError(f"a word between hosts is not msgpack ({type(error).__name__})") from None
    if not isinstance(word, dict) or not isinstance(word.get("kind"), str):
        raise FrameError("a word between hosts is of no kind")
    return dict(word)
