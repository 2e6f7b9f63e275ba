"""Joining a worker to its links, of whichever kind each is.

    shm         the supervisor sends a socket for each end
    zmq         a receiver listens and says where; the supervisor passes that on to the sender
    gloo, nccl  the two ends find each other in a store

What they need files for lies in the run's folder `links`, and goes with its supervisor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property, partial
from typing import Any

import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from .channels import Receiver, Sender
from .delays import DelayedReceiver
from .distributed import DistributedCarrier
from .ends import DATA, End, ends_of, stage_title
from .pairs import NcclPair
from .parcels import Carrier, ParcelReceiver, ParcelSender
from .place import Place, Site
from .sharedmem import SharedReceiver, SharedSender
from .zeromq import ZeroCarrier

__all__ = ["LINKS", "Joining"]

LINKS = "links"
STORE = "store"
SILENCE = 10.0
"""Seconds until another host is taken for dead: a large tensor on a slow way is silence too. Its outpost is quicker."""
Tell = Callable[..., None]
Hear = Callable[[str], tuple[Mapping[str, Any], Sequence[int]]]
"""Waits for a word of that kind, which may have descriptors with it."""


class Joining:
    """Makes the ends of one worker's links.

    Args:
        place: Where it runs.
        tell: Tells the supervisor something.
        hear: Waits for a word of the supervisor's.
    """

    def __init__(self, place: Place, tell: Tell, hear: Hear) -> None:
        self.place = place
        self._tell, self._hear = tell, hear
        self._folder = place.run / LINKS

    def ends(self) -> dict[str, Sender | Receiver]:
        """Return the ends by their role."""
        message, descriptors = self._hear("links")
        bells = dict(zip(message["bells"], descriptors, strict=True))
        ends = ends_of(self.place.name, self.place.wiring.stages)
        self._folder.mkdir(exist_ok=True)
        carriers = self._over_zeromq([end for end in ends if self._kind(end) == "zmq"])
        for end in ends:
            if self._kind(end) in ("gloo", "nccl"):
                carriers[end.role] = self._over_a_group(end)
        return {
            end.role: self._delayed(
                end,
                self._carried(end, carriers[end.role])
                if end.role in carriers
                else self._in_shared_memory(end, socket.socket(fileno=bells[end.role])),
            )
            for end in ends
        }

    def _delayed(self, end: End, made: Sender | Receiver) -> Sender | Receiver:
        """Return an end behind as slow a way as there is to be between stages."""
        if isinstance(made, Sender) or not self.place.delay or DATA in (self.place.name, end.peer):
            return made
        return DelayedReceiver(made, self.place.delay)

    def _kind(self, end: End) -> str:
        return self.place.wiring.kind(self.place.name, end.peer)

    def _in_shared_memory(self, end: End, bell: socket.socket) -> Sender | Receiver:
        capacity, peer = self.place.capacity(end.peer), stage_title(end.peer)
        if not end.sends:
            return SharedReceiver(end.edge, peer, capacity, bell, device=self.place.device)

        def keep(descriptor: int) -> None:
            self._tell("memory", [descriptor], link=end.link)

        return SharedSender(end.edge, peer, capacity, bell, on_memory=keep)

    def _carried(self, end: End, carrier: Carrier) -> Sender | Receiver:
        kind = ParcelSender if end.sends else ParcelReceiver
        return kind(end.edge, stage_title(end.peer), self.place.capacity(end.peer), carrier)

    def _over_zeromq(self, ends: Sequence[End]) -> dict[str, Carrier]:
        """Return a carrier for each end, by its role; those that send wait until the other ends listen."""
        carriers: dict[str, Carrier] = {}
        for end in ends:
            if not end.sends:
                carrier = carriers[end.role] = self._zero_carrier(end, self._own_address(end), listens=True)
                self._tell("listening", link=end.link, address=carrier.address)
        senders = [end for end in ends if end.sends]
        addresses: Mapping[str, str] = self._hear("connect")[0]["addresses"] if senders else {}
        for end in senders:
            address = addresses[end.link] if self._site(end) else self._own_address(end)
            carriers[end.role] = self._zero_carrier(end, address, listens=False)
        return carriers

    def _zero_carrier(self, end: End, address: str, *, listens: bool) -> ZeroCarrier:
        site = self._site(end)
        guard, silence = (site.guard, SILENCE) if site else (None, None)
        return ZeroCarrier(address, listens=listens, guard=guard, silence=silence)

    def _over_a_group(self, end: End) -> Carrier:
        site, rank = self._site(end), 0 if end.sends else 1
        how: dict[str, Any] = {"patience": self.place.timeout}
        if self._kind(end) == "nccl":
            device = self.place.device
            how |= {"device": device, "values": partial(NcclPair, device=device)}
        if site is not None:
            how |= {"host": site.address, "beats": True}
        return DistributedCarrier(self._store(site), end.link, rank, **how)

    def process_group(self) -> None:
        """Join all stages in torch.distributed's default group, where its own schedules look for each other."""
        wiring, place = self.place.wiring, self.place
        on_gpus = all(device.startswith("cuda") for device in wiring.devices)
        dist.init_process_group(
            "nccl" if on_gpus else "gloo",
            store=PrefixStore("schedule", self._store(place.site if wiring.is_on_several_hosts else None)),
            rank=place.stage,
            world_size=wiring.stages,
            timeout=timedelta(seconds=place.timeout),
        )

    def _store(self, site: Site | None) -> Store:
        """Return where process groups find each other, on this host or on several."""
        if site is None:
            return FileStore(str(self._folder / STORE), -1)
        return PrefixStore(site.run_id, TCPStore(*site.store, is_master=False, wait_for_workers=False))

    def _site(self, end: End) -> Site | None:
        """Return where we are among the hosts, if the other end is on another one."""
        far = self.place.wiring.is_between_hosts(self.place.name, end.peer)
        assert self.place.site is not None or not far, "whoever makes a run of several hosts says where each place is"
        return self.place.site if far else None

    def _own_address(self, end: End) -> str:
        """Return where a link's socket is on this host: by a short path, for run folders lie deep."""
        if (site := self._site(end)) is not None:
            return site.port()
        return f"ipc:///proc/self/fd/{self._descriptor}/{end.link}"

    @cached_property
    def _descriptor(self) -> int:
        """Of the folder; ZeroMQ needs it for as long as the links are there."""
        return os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
