"""Which kind of link joins which workers: those of one host, of several, those on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ends import DATA

__all__ = ["Choice", "LinkKind", "Wiring"]

LinkKind = Literal["shm", "zmq", "gloo", "nccl"]
Choice = Literal["auto", "shm", "zmq", "dist"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Where each stage is, and what was chosen to join them; the data process is on the first stage's host."""

    devices: tuple[str, ...]
    hosts: tuple[int, ...]
    """Stages with the same number are on one host."""
    choice: Choice = "auto"
    encrypts: bool = False
    """Whether what goes between hosts must be encrypted, which ZeroMQ can."""

    @property
    def stages(self) -> int:
        return len(self.devices)

    @property
    def is_on_several_hosts(self) -> bool:
        return len(set(self.hosts)) > 1

    def kind(self, one: str, other: str) -> LinkKind:
        """Return the kind of the links between two workers."""
        (host, device), (other_host, other_device) = self._place(one), self._place(other)
        if self.choice in ("shm", "zmq"):
            return self.choice
        if host != other_host and self.encrypts:
            return "zmq"
        on_gpus = device.startswith("cuda") and other_device.startswith("cuda")
        if on_gpus and (host, device) != (other_host, other_device):  # NCCL refuses two ranks on one GPU
            return "nccl"
        return "gloo" if self.choice == "dist" or host != other_host else "shm"

    def is_between_hosts(self, one: str, other: str) -> bool:
        """Return whether two workers are on different hosts."""
        return self._place(one)[0] != self._place(other)[0]

    def _place(self, name: str) -> tuple[int, str]:
        return (self.hosts[0], "cpu") if name == DATA else (self.hosts[int(name)], self.devices[int(name)])
