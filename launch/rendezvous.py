"""torchrun's variables, and how its ranks find the run folder that rank 0 makes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from stepahead.pipeline import UsageError

__all__ = ["Torchrun"]

KEY = "run"
ASK_EVERY = 0.05
CONNECT_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """One rank of a torchrun launch: the worker of the stage of that number."""

    rank: int
    local_rank: int
    world_size: int
    host: str
    port: int
    run_id: str
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
                agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            )
        except (KeyError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"RANK is set, as by torchrun, but other variables are not right ({what})") from None
        if environment.get("LOCAL_WORLD_SIZE", str(found.world_size)) != str(found.world_size):
            raise UsageError(
                f"{found.world_size} ranks on several hosts need a link between hosts, and shared memory is on one; "
                f"start all ranks on one host: torchrun --standalone --nproc-per-node {found.world_size}"
            )
        return found

    def publish(self, run: Path) -> None:
        """As rank 0: tell all ranks where the run folder is."""
        self._store.set(KEY, str(run.resolve()))

    def find(self, timeout: float) -> Path:
        """As another rank: return where the run folder is."""
        deadline = time.monotonic() + timeout
        with suppress(DistStoreError, DistNetworkError):
            while time.monotonic() < deadline:
                if self._store.check([KEY]):
                    return Path(self._store.get(KEY).decode())
                time.sleep(ASK_EVERY)  # to wait in the store would be deaf to Ctrl-C
        raise UsageError(f"rank {self.rank} waited {timeout:g} s for rank 0 to make the run folder")

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
