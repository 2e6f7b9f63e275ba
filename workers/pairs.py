"""Pairs of processes, each with a process group of torch.distributed to itself: one can be made anew alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store  # type: ignore[attr-defined]

__all__ = ["GlooPair", "NcclPair", "Pair"]

PIECE = 2**23
"""Bytes that go at a time over gloo, so that a slow way is not taken for a dead one."""


class Pair(Protocol):
    """One end of a pair; each way may have a thread. What fails raises RuntimeError: there is no way back from it."""

    def put(self, values: Tensor) -> None:
        """Send bytes, and wait until they are on their way."""

    def get(self, values: Tensor) -> None:
        """Receive so many bytes, and wait for them."""


class GlooPair:
    """A pair over gloo.

    Args:
        store: Where the two find each other.
        rank: 0 for one, 1 for the other.
        host: The address by which the other reaches this host.
        silence: To wait for a piece; then the pair is broken for good.
    """

    def __init__(self, store: Store, rank: int, host: str, silence: timedelta) -> None:
        gloo: Any = ProcessGroupGloo  # whose stubs lack nearly all of it
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=host)]
        options._timeout = silence
        self._other = 1 - rank
        self._group = gloo(PrefixStore("gloo", store), rank, 2, options)

    def put(self, values: Tensor) -> None:
        for piece in values.split(PIECE):
            self._group.send([piece], self._other, 0).wait()

    def get(self, values: Tensor) -> None:
        for piece in values.split(PIECE):
            self._group.recv([piece], self._other, 0).wait()


class NcclPair:
    """A pair over NCCL, between two GPUs."""

    def __init__(self, store: Store, rank: int, device: torch.device) -> None:
        from torch.distributed import ProcessGroupNCCL  # not there in a torch without CUDA

        nccl: Any = ProcessGroupNCCL
        self._other = 1 - rank
        self._device = device
        self._group = nccl(PrefixStore("nccl", store), rank, 2, nccl.Options())
        self._streams = {"put": torch.cuda.Stream(device), "get": torch.cuda.Stream(device)}

    def put(self, values: Tensor) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._streams["put"]):
            self._group.send([values], self._other, 0).wait()
        self._streams["put"].synchronize()

    def get(self, values: Tensor) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._streams["get"]):
            self._group.recv([values], self._other, 0).wait()
        self._streams["get"].synchronize()
