"""Where a worker runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from stepahead.pipeline import parse_device

from .delays import Delay
from .ends import DATA
from .guard import Guard
from .wiring import Wiring

__all__ = ["Place", "Site", "log_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One of several hosts."""

    address: str
    """By which the others reach it."""
    store: tuple[str, int]
    """Host and port of the store in which process groups find each other."""
    run_id: str
    """What keeps the runs apart that use the store."""
    guard: Guard
    """Who may connect to a port here."""

    def port(self) -> str:
        """Return what to listen at: a port here that is free."""
        return f"tcp://[{self.address}]:*" if ":" in self.address else f"tcp://{self.address}:*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker runs."""

    name: str
    """Its stage's number, or "data"."""
    run: Path
    """The run folder."""
    wiring: Wiring
    cores: tuple[int, ...]
    """The cores to stay on; none to stay where the system likes."""
    window: int
    """Messages that a link holds."""
    prefetch: int
    """Batches that the link from the data holds."""
    timeout: float
    """Seconds to wait for another worker before giving up."""
    spin: float
    """Seconds for which it looks again and again before it sleeps."""
    ledger: bool
    """Whether to write down every message that is sent or received."""
    telemetry: bool
    """Whether to keep what was done when, and not only how much in all."""
    torchrun: bool
    """Whether torchrun started this: then it keeps what is printed, and signals come to the worker itself."""
    delay: Delay = field(default_factory=Delay)
    """How slow the ways between stages are to be."""
    site: Site | None = None
    """What there is to know besides, where there are several hosts."""

    @property
    def stage(self) -> int:
        """The stage's number; -1 for the data."""
        return -1 if self.name == DATA else int(self.name)

    @property
    def device(self) -> torch.device:
        """What it computes on; the data process has no GPU."""
        return parse_device("cpu" if self.name == DATA else self.wiring.devices[self.stage])

    def capacity(self, peer: str) -> int:
        """Return how many messages a link to another worker holds."""
        return self.prefetch if DATA in (self.name, peer) else self.window


def log_folder(run: Path, name: str) -> Path:
    return run / "logs" / name
