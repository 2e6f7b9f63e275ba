"""Which ends of which links each worker has: for whoever hands them out, and for the worker that gets them.

data --activations--> 0 --activations--> 1 --> ..
                        <---gradients---
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepahead.pipeline import edge_name

__all__ = ["DATA", "End", "ends_of", "stage_title", "worker_names"]

DATA = "data"
Flow = Literal["activations", "gradients"]


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link, as one worker has it."""

    edge: str
    flow: Flow
    sends: bool
    peer: str
    """The name of the worker at the other end."""

    @property
    def link(self) -> str:
        """The name of the link, the same at both ends."""
        return f"{self.edge}-{self.flow}"

    @property
    def role(self) -> str:
        """What the end is to its worker."""
        return f"{self.flow}_{'out' if self.sends else 'in'}"


def worker_names(stages: int) -> list[str]:
    """Return the names of all workers: the data process, and each stage's number."""
    return [DATA, *map(str, range(stages))]


def stage_title(name: str) -> str:
    """Return what to call a worker in a message to people."""
    return "the data process" if name == DATA else f"stage {name}"


def ends_of(name: str, stages: int) -> list[End]:
    """Return a worker's ends."""
    if name == DATA:
        return [End(edge_name(-1, 0), "activations", sends=True, peer="0")]
    stage = int(name)
    above, below = edge_name(stage - 1, stage), edge_name(stage, stage + 1)
    ends = [End(above, "activations", sends=False, peer=DATA if stage == 0 else str(stage - 1))]
    if stage > 0:
        ends.append(End(above, "gradients", sends=True, peer=str(stage - 1)))
    if stage < stages - 1:
        ends.append(End(below, "activations", sends=True, peer=str(stage + 1)))
        ends.append(End(below, "gradients", sends=False, peer=str(stage + 1)))
    return ends
