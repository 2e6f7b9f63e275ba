"""Ways from one process to another: our links, and the bare libraries beside them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.multiprocessing as torch_processes
import zmq
from torch import Tensor
from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]

from stepahead.pipeline import Gradient, GradientKind
from stepahead.workers import Guard, Receiver, Sender, SharedReceiver, SharedSender, Waiter, ZeroCarrier, make_sockets
from stepahead.workers.distributed import DistributedCarrier
from stepahead.workers.pairs import GlooPair
from stepahead.workers.parcels import Carrier, ParcelReceiver, ParcelSender
from stepahead.workers.waiting import LOOK

__all__ = ["TRANSPORTS", "Talker"]

CAPACITY = 8
EDGES = ("0>1", "1>2")
SPIN = 0.05
SECRET = b"a secret"


class Talker(Protocol):
    """One side: what it sends comes out of the other's `receive`."""

    def send(self, values: Tensor) -> None: ...

    def receive(self) -> Tensor: ...


@dataclass
class Linked:
    """One side with a link of ours each way."""

    sender: Sender
    receiver: Receiver
    in_place: bool = False
    spin: float = 0.0
    look: float = LOOK

    def __post_init__(self) -> None:
        self.waiter = Waiter([self.sender, self.receiver], self.spin, self.look)
        self.step = 0

    def send(self, values: Tensor) -> None:
        self.step += 1
        message = Gradient(edge=self.sender.edge, step=self.step, tensors=(values,), kind=GradientKind.TARGET)
        while not self.sender.try_send(message):
            self.waiter.wait(10)

    def receive(self) -> Tensor:
        while (message := self.receiver.try_receive(own=not self.in_place)) is None:
            self.waiter.wait(10)
        assert isinstance(message, Gradient)
        return message.tensors[0]


Meet = Callable[[], object]
Make = Callable[[bool, Meet], Talker]
"""Makes one side, after the fork: the parent's if True. To meet is to wait for the other."""


def shared_memory(folder: Path, *, in_place: bool = False, spin: float = 0.0, look: float = LOOK) -> Make:
    pairs = [make_sockets(), make_sockets()]

    def make(parent: bool, meet: Meet) -> Talker:
        out, back = (0, 1) if parent else (1, 0)
        sender = SharedSender(EDGES[out], "the other", CAPACITY, pairs[out][0])
        receiver = SharedReceiver(EDGES[back], "the other", CAPACITY, pairs[back][1])
        return Linked(sender, receiver, in_place, spin, look)

    return make


def _carried(out: Carrier, back: Carrier, parent: bool) -> Talker:
    mine, other = EDGES if parent else EDGES[::-1]
    return Linked(ParcelSender(mine, "the other", CAPACITY, out), ParcelReceiver(other, "the other", CAPACITY, back))


def zeromq(folder: Path, *, tcp: bool = False, guard: Guard | None = None) -> Make:
    ports = [_free_port(), _free_port()]

    def make(parent: bool, meet: Meet) -> Talker:
        out, back = (0, 1) if parent else (1, 0)
        addresses = [f"tcp://127.0.0.1:{port}" if tcp else f"ipc://{folder}/{port}" for port in ports]
        listening = ZeroCarrier(addresses[back], listens=True, guard=guard)
        meet()
        return _carried(ZeroCarrier(addresses[out], listens=False, guard=guard), listening, parent)

    return make


def gloo(folder: Path) -> Make:
    def make(parent: bool, meet: Meet) -> Talker:
        store = FileStore(str(folder / "store"), -1)
        carriers = [DistributedCarrier(store, edge, int(parent == (edge == EDGES[0]))) for edge in EDGES]
        out, back = carriers if parent else carriers[::-1]
        return _carried(out, back, parent)

    return make


class BareZeroMQ:
    """A PAIR socket, and its blocking calls without copies."""

    def __init__(self, address: str, parent: bool) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        (self.socket.bind if parent else self.socket.connect)(address)

    def send(self, values: Tensor) -> None:
        array: Any = values.numpy()
        self.socket.send(array, copy=False)

    def receive(self) -> Tensor:
        return torch.frombuffer(self.socket.recv(copy=False).buffer, dtype=torch.float32)


def bare_zeromq(folder: Path, *, tcp: bool = False) -> Make:
    port = _free_port()
    address = f"tcp://127.0.0.1:{port}" if tcp else f"ipc://{folder}/bare"
    return lambda parent, meet: BareZeroMQ(address, parent)


class BareGloo:
    """Blocking calls into and out of buffers at hand."""

    def __init__(self, pair: GlooPair) -> None:
        self.pair = pair
        self.buffers: dict[int, Tensor] = {}
        self.size = 0

    def send(self, values: Tensor) -> None:
        self.pair.put(values.view(torch.uint8))

    def receive(self) -> Tensor:
        buffer = self.buffers.setdefault(self.size, torch.empty(self.size, dtype=torch.uint8))
        self.pair.get(buffer)
        return buffer.view(torch.float32)


def bare_gloo(folder: Path) -> Make:
    def make(parent: bool, meet: Meet) -> Talker:
        store = PrefixStore("bare", FileStore(str(folder / "store"), -1))
        return BareGloo(GlooPair(store, int(parent), "127.0.0.1", timedelta(seconds=600)))

    return make


class Queued:
    """torch.multiprocessing's queues."""

    def __init__(self, out: Any, back: Any) -> None:
        self.out, self.back = out, back

    def send(self, values: Tensor) -> None:
        self.out.put(values.clone())  # as it moves what it is given into shared memory

    def receive(self) -> Tensor:
        values: Tensor = self.back.get()
        return values


def queue(folder: Path) -> Make:
    context = torch_processes.get_context("fork")
    queues = [context.Queue(), context.Queue()]
    return lambda parent, meet: Queued(*(queues if parent else queues[::-1]))


TRANSPORTS: dict[str, Callable[[Path], Make]] = {
    "shared memory": shared_memory,
    "shared memory, in place": lambda folder: shared_memory(folder, in_place=True),
    "shared memory, in place, by its bell": lambda folder: shared_memory(folder, in_place=True, look=0.0),
    "shared memory, in place, spinning": lambda folder: shared_memory(folder, in_place=True, spin=SPIN),
    "ZeroMQ, ipc": zeromq,
    "ZeroMQ, TCP": lambda folder: zeromq(folder, tcp=True, guard=Guard(SECRET)),
    "ZeroMQ, TCP, encrypted": lambda folder: zeromq(folder, tcp=True, guard=Guard(SECRET, encrypts=True)),
    "gloo": gloo,
    "bare ZeroMQ, ipc": bare_zeromq,
    "bare ZeroMQ, TCP": lambda folder: bare_zeromq(folder, tcp=True),
    "bare gloo": bare_gloo,
    "torch.multiprocessing.Queue": queue,
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
