"""Further hosts, as the supervisor sees them: through the outpost (`outpost.py`) on each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stepahead.pipeline import FrameError
from stepahead.workers import Failure, Telemetry

from .uplink import Uplink

__all__ = ["Host"]

MOST_EVENTS = 2**16


class Host:
    """One further host.

    Args:
        address: Of it, for people.
        names: Of the workers there.
        uplink: To its outpost.
        folder: The run folder, which gets what the workers there leave.
        failure: Returns why there will never be an outpost, as a worker there has said it, or None.
    """

    def __init__(
        self,
        address: str,
        names: list[str],
        uplink: Uplink,
        folder: Path,
        failure: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        self.address = address
        self.names = names
        self.uplink = uplink
        self.telemetry: dict[str, Telemetry] = {}
        """Copies of what the workers there write."""
        self._folder = folder.resolve()
        self._failure = failure
        self._heard = False

    @property
    def gone(self) -> bool:
        """Whether the way to it is cut, or its outpost has ended; ask before `messages`."""
        return self.uplink.gone

    def messages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what its workers say, `ended` for each whose process is no more, `state` when one is stopped or not."""
        for word, beside in self.uplink.take():
            self._heard = True
            kind = word["kind"]
            if kind == "said":
                if word["message"]["kind"] == "hello":
                    self.telemetry[word["name"]] = Telemetry(min(word["message"]["events"], MOST_EVENTS))
                yield word["name"], word["message"]
            elif kind in ("ended", "state"):
                yield word["name"], word
            elif kind == "telemetry":
                self.telemetry[word["name"]].paste(*beside)
            elif kind in ("file", "bye"):
                if kind == "file":
                    self._write(word["path"], beside[0])
                self.uplink.send({"kind": "took"})
            elif kind == "ping":
                self.uplink.send({"kind": "pong", "asked": word["asked"], "time": time.perf_counter_ns()})

    def early_failure(self) -> Failure | None:
        """Return why no outpost has come and none will, if that was said."""
        said = None if self._heard else self._failure()
        return Failure(**said) if said else None

    def tell(self, kind: str, *names: str, **fields: Any) -> None:
        """Send a word to some of its workers, or to all."""
        for name in self.names:
            if not names or name in names:
                self.uplink.send({"kind": "tell", "to": name, "word": kind, "fields": fields})

    def close(self) -> None:
        self.uplink.close()

    def _write(self, name: str, piece: bytes) -> None:
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder):
            raise FrameError(f"{self.address} sent a file {name!r}, which is not one of the run's")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(piece)
