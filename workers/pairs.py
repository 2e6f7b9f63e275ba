"""Pairs of processes, each with a process group of torch.distributed to itself: one can be made anew alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store  # type: ignore[attr-defined]

from stepahead.pipeline.devices import Point

__all__ = ["GlooPair", "NcclPair", "Pair"]

PIECE = 2**23
"""Bytes that go at a time over gloo, so that a slow way is not taken for a dead one."""


class Pair(Protocol):
    """One end of a pair; each way may have a thread. What fails raises RuntimeError: there is no way back from it."""

    def put(self, values: Tensor, after: Point | None = None) -> None:
        """Send bytes, and wait until they are on their way; they are there once their device passed a point."""

    def room(self, size: int) -> Tensor:
        """Return a place for bytes to come."""
        ...

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

    def put(self, values: Tensor, after: Point | None = None) -> None:
        for piece in _pieces(values):
            self._group.send([piece], self._other, 0).wait()

    def room(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def get(self, values: Tensor) -> None:
        for piece in _pieces(values):
            self._group.recv([piece], self._other, 0).wait()


class NcclPair:
    """A pair over NCCL, between two GPUs: each way on a stream of its own, beside the one that computes.

    Args:
        store, rank: As for gloo.
        device: The GPU on this side.
    """

    def __init__(self, store: Store, rank: int, device: torch.device) -> None:
        from torch.distributed import ProcessGroupNCCL  # not there in a torch without CUDA

        nccl: Any = ProcessGroupNCCL
        self._other = 1 - rank
        self._device = device
        self._group = nccl(PrefixStore("nccl", store), rank, 2, nccl.Options())
        self._out, self._in = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def put(self, values: Tensor, after: Point | None = None) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._out):
            if after is not None:
                self._out.wait_event(after)
            self._group.send([values], self._other, 0).wait()
        self._out.synchronize()

    def room(self, size: int) -> Tensor:
        with torch.cuda.device(self._device), torch.cuda.stream(self._in):  # or what is computed might still use it
            place = torch.empty(size, dtype=torch.uint8, device=self._device)
        place.record_stream(torch.cuda.default_stream(self._device))
        return place

    def get(self, values: Tensor) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._in):
            self._group.recv([values], self._other, 0).wait()
        self._in.synchronize()


def _pieces(values: Tensor) -> Sequence[Tensor]:
    """Return what goes at a time."""
    return values.split(PIECE) if len(values) > PIECE else (values,)
