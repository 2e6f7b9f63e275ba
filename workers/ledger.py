"""The ledger: what went into each link and what came out of it, to prove that nothing was lost, doubled or changed.

Off unless asked for (`--set ledger=true`): then each worker writes a line for every message that it sent or received,

    ["sent", "0>1", "activations", 17, 17, 2915381066]     edge, flow, sequence number, step, checksum of the values

into logs/<stage>/ledger.jsonl, and `check_ledgers` compares the two ends of every link.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TextIO

from stepahead.pipeline import Activation, FrameError, Mark, Message

from .wire import bytes_of

__all__ = ["Entry", "Ledger", "check_ledgers", "compare", "entry_of"]

FILE = "ledger.jsonl"
Way = Literal["sent", "received"]
Entry = tuple[str, str, str, int, int, int]
"""Way, edge, flow, sequence number, step, checksum."""


class Ledger:
    """Writes a worker's entries into its log folder."""

    def __init__(self, folder: Path) -> None:
        self._file: TextIO = (folder / FILE).open("w", buffering=1)

    def recorder(self, way: Way) -> Callable[[int, Message], None]:
        """Return what a link end is to call with each message and its number."""
        return lambda sequence, message: self._write(entry_of(way, sequence, message))

    def _write(self, entry: Entry) -> None:
        self._file.write(json.dumps(entry) + "\n")


def entry_of(way: Way, sequence: int, message: Message) -> Entry:
    """Return the entry for a message."""
    return (way, message.edge, _flow(message), sequence, message.step, _checksum(message))


def check_ledgers(run: Path) -> int:
    """Compare the ledgers of a run folder, and return how many messages there were."""
    lines = [line for file in sorted(run.glob(f"logs/*/{FILE}")) for line in file.read_text().splitlines()]
    return compare(tuple(json.loads(line)) for line in lines)


def compare(entries: Iterable[Entry]) -> int:
    """Check that every link brought what was sent, all of it, once, in order; return how many messages there were."""
    links: defaultdict[tuple[str, str], dict[str, list[tuple[int, int, int]]]]
    links = defaultdict(lambda: {"sent": [], "received": []})
    for way, edge, flow, *rest in entries:
        sequence, step, checksum = rest
        links[edge, flow][way].append((sequence, step, checksum))
    for (edge, flow), ways in links.items():
        numbers = [sequence for sequence, _, _ in ways["sent"]]
        if numbers != list(range(len(numbers))):
            raise FrameError(f"on edge {edge} the {flow} that were sent are numbered {numbers}")
        if ways["sent"] != ways["received"]:
            pairs = enumerate(zip(ways["sent"], ways["received"], strict=False))
            place = next((index for index, (left, right) in pairs if left != right), "the end")
            raise FrameError(
                f"on edge {edge} {len(ways['sent'])} {flow} were sent and {len(ways['received'])} received; "
                f"they differ from {place} on"
            )
    return sum(len(ways["sent"]) for ways in links.values())


def _flow(message: Message) -> str:
    return "activations" if isinstance(message, (Activation, Mark)) else "gradients"


def _checksum(message: Message) -> int:
    if isinstance(message, Mark):
        return zlib.crc32(message.kind.encode())
    checksum = 0
    for value in message.values:
        checksum = zlib.crc32(bytes_of(value), checksum)
    return checksum
