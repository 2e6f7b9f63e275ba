"""torchrun's variables, and how its ranks find each other: through the store that torchrun serves.

rank <n>      each rank says where it is
terms         rank 0 says what they all work on
uplinks       its supervisor says where it hears the other hosts
folder <n>    the first rank of each further host says where its workers work
failed <n>    or a rank there why they never will
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from stepahead.pipeline import UsageError

__all__ = ["Arrival", "Torchrun"]

FIND_TIMEOUT = 120.0
SIOCGIFADDR = 0x8915
ASK_EVERY = 0.05
CONNECT_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True)
class Arrival:
    """Where a rank is."""

    node: int
    local_rank: int
    address: str
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """One rank of a torchrun launch: the worker of the stage of that number."""

    rank: int
    local_rank: int
    world_size: int
    host: str
    port: int
    run_id: str
    node: int
    """The number of its host."""
    agent_store: bool
    """Whether torchrun's agent already serves the store; otherwise rank 0 must."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Torchrun | None:
        """Return what torchrun says in the environment, or None if this process was not started by it."""
        if "RANK" not in environment:
            return None
        try:
            restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
            found = cls(
                rank=int(environment["RANK"]),
                local_rank=int(environment["LOCAL_RANK"]),
                world_size=int(environment["WORLD_SIZE"]),
                host=environment["MASTER_ADDR"],
                port=int(environment["MASTER_PORT"]),
                run_id=f"{environment.get('TORCHELASTIC_RUN_ID', 'none')}/{restart}",
                node=int(environment.get("GROUP_RANK", "0")),
                agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            )
        except (KeyError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"RANK is set, as by torchrun, but other variables are not right ({what})") from None
        return found

    def say(self, key: str, value: object) -> None:
        """Let all ranks know something."""
        self._store.set(key, json.dumps(value))

    def hear(self, key: str, timeout: float = FIND_TIMEOUT) -> Any:
        """Return what another rank says, as soon as it does."""
        deadline = time.monotonic() + timeout
        with suppress(DistStoreError, DistNetworkError):
            while time.monotonic() < deadline:
                if (said := self._asked(key)) is not None:
                    return said
                time.sleep(ASK_EVERY)  # to wait in the store would be deaf to Ctrl-C
        raise UsageError(f"rank {self.rank} waited {timeout:g} s for another one to say its {key!r}")

    def heard(self, key: str) -> Any:
        """Return what another rank has said, or None if it has not."""
        with suppress(DistStoreError, DistNetworkError):
            return self._asked(key)
        return None

    def _asked(self, key: str) -> Any:
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def arrive(self) -> None:
        """Say where this rank is."""
        self.say(f"rank {self.rank}", [self.node, self.local_rank, self.address, torch.cuda.device_count()])

    def arrivals(self) -> list[Arrival]:
        """Return where each rank is."""
        return [Arrival(*self.hear(f"rank {rank}")) for rank in range(self.world_size)]

    @cached_property
    def address(self) -> str:
        """The address by which other hosts reach this one: of the interface that GLOO_SOCKET_IFNAME names, or of that
        on which this host reaches the store."""
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
        return _address_of(interface) if interface else _address_towards(self.host, self.port)

    def as_client(self) -> Torchrun:
        """Return the same for a process that rank 0 has forked: connections are not for two processes."""
        return replace(self, agent_store=True)

    @cached_property
    def _store(self) -> Store:
        """What all ranks read; where torchrun serves none, rank 0's must live on for the others."""
        store = TCPStore(
            self.host,
            self.port,
            self.world_size,
            is_master=self.rank == 0 and not self.agent_store,
            timeout=CONNECT_TIMEOUT,
            wait_for_workers=False,
        )
        return PrefixStore(f"stepahead/{self.run_id}", store)


def _address_towards(host: str, port: int) -> str:
    family, kind, *_, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # which sends nothing
        return str(probe.getsockname()[0])


def _address_of(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError as error:
            raise UsageError(f"GLOO_SOCKET_IFNAME is {interface!r}, which has no address ({error.strerror})") from None
    return socket.inet_ntoa(found[20:24])
