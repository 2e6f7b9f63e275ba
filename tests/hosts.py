"""Two hosts without leaving the machine: network namespaces with addresses of their own, joined by a cable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

__all__ = ["TwoHosts", "can_make_hosts", "two_hosts"]

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29517"


class TwoHosts:
    """The hosts, and what runs on them."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.names = names
        self.folder = folder

    def torchrun(self, kept: ExitStack, arguments: Sequence[str], per_host: int = 1) -> list[subprocess.Popen[str]]:
        """Start torchrun on both, each in a folder of its own, and return them; the first host's output is a pipe."""
        started: list[subprocess.Popen[str]] = []
        for node, name in enumerate(self.names):
            where = self.folder / f"host {node}"
            where.mkdir(parents=True, exist_ok=True)
            output: int | IO[str] = subprocess.PIPE if node == 0 else kept.enter_context((where / "output").open("w"))
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"]
            command += ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", str(per_host)]
            command += ["--master-addr", ADDRESSES[0], "--master-port", PORT, "-m", "stepahead.launch", *arguments]
            each = subprocess.Popen(command, cwd=where, stdout=output, stderr=subprocess.STDOUT, text=True)
            kept.enter_context(each)
            kept.callback(each.kill)
            started.append(each)
        return started

    def cut(self) -> None:
        """Cut the cable: what is sent is lost, and nobody is told."""
        _ip("-n", self.names[0], "link", "set", "cable", "down")


def can_make_hosts() -> bool:
    """Return whether this process may make hosts."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"stepahead-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", name)
    return made


@contextmanager
def two_hosts(folder: Path) -> Generator[TwoHosts]:
    """Yield two hosts."""
    names = [f"stepahead-{os.getpid()}-{node}" for node in range(2)]
    with ExitStack() as kept:
        for name in names:
            _ip("netns", "add", name)
            kept.callback(_ip, "netns", "del", name)
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "cable", "up")
        yield TwoHosts(names, folder)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
