"""What a peer may send that keeps to nothing: a typed error or what was sent, never a crash, a hang or much memory."""

from __future__ import annotations

import gc
import mmap
import resource
import socket
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count
from threading import Event
from typing import Any

import pytest
import torch
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

from stepahead.pipeline import Activation, FrameError, LinkTimeoutError, Message, PeerEndedError, PeerGoneError
from stepahead.workers import SharedReceiver, SharedSender, Waiter, distributed, make_sockets
from stepahead.workers.distributed import BEAT, FRONT, FRONT_BYTES, DistributedCarrier
from stepahead.workers.guard import Guard
from stepahead.workers.pairs import GlooPair
from stepahead.workers.parcels import ParcelReceiver, ParcelSender
from stepahead.workers.wire import header_of, pack_header
from stepahead.workers.zeromq import ZeroCarrier

TYPED = (FrameError, LinkTimeoutError, PeerEndedError, PeerGoneError)
BATCH = Activation(edge="0>1", step=0, tensors=(torch.ones(4, 3),), label=torch.arange(4))
HEAD = pack_header(header_of(BATCH, 0))
PARTS = [HEAD, bytes(48), bytes(32)]
MUCH = 8 * 1024
"""In KiB."""
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
slips = st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), min_size=1, max_size=4)
"""Which bytes to change, and what to change them by."""


def changed(good: bytes, changes: Sequence[tuple[int, int]]) -> bytes:
    bad = bytearray(good)
    for place, by in changes:
        bad[place % len(bad)] ^= by
    return bytes(bad)


def received(receiver: Any, seconds: float = 5.0) -> Message | None:
    """Return what comes out, or None for a typed error; nothing else may happen."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        message: Message = receiver.receive(timeout=seconds)
    except TYPED:
        return None
    finally:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MUCH
    assert message.edge == "0>1"
    return message


def drain(receiver: Any) -> None:
    """Receive until it raises."""
    while True:
        receiver.receive(timeout=5)


@contextmanager
def over_zeromq(kind: str = "receiver") -> Generator[tuple[Any, zmq.Socket[bytes]]]:
    """Yield an end, and a raw socket in place of its peer."""
    with ExitStack() as kept:
        context = kept.enter_context(zmq.Context())
        carrier = ZeroCarrier("tcp://127.0.0.1:*", listens=True)
        end = (ParcelReceiver if kind == "receiver" else ParcelSender)("0>1", "the peer", 2, carrier)
        kept.enter_context(closing(end))
        peer = kept.enter_context(context.socket(zmq.PAIR))
        peer.linger = 0
        peer.connect(carrier.address)
        yield end, peer


@many
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=20))
def test_random_parts_over_zeromq(parts: list[bytes]) -> None:
    with over_zeromq() as (receiver, peer):
        peer.send_multipart(parts)
        assert received(receiver) is None


@many
@given(st.integers(0, 2), slips)
def test_changed_parts_over_zeromq(part: int, changes: list[tuple[int, int]]) -> None:
    with over_zeromq() as (receiver, peer):
        peer.send_multipart([changed(raw, changes) if index == part else raw for index, raw in enumerate(PARTS)])
        message = received(receiver)
        assert message is None or part > 0 or message.step != 0 or isinstance(message, Activation)


@many
@given(st.binary(max_size=64))
def test_random_counts_over_zeromq(raw: bytes) -> None:
    with over_zeromq("sender") as (sender, peer):
        peer.send(raw)
        try:
            for step in range(3):
                sender.send(Activation(edge="0>1", step=step, tensors=BATCH.tensors, label=BATCH.label), timeout=0.2)
        except TYPED:
            return
        raise AssertionError("three messages went where there is room for two")


def test_more_messages_than_there_are_credits_for() -> None:
    with over_zeromq() as (receiver, peer):
        for sequence in range(3):
            peer.send_multipart([pack_header(header_of(BATCH, sequence)), *PARTS[1:]])
        with pytest.raises(FrameError, match="on edge 0>1 the peer sent more than the 2 messages it may"):
            drain(receiver)


def test_a_peer_that_was_seen_and_went_without_a_word_is_gone() -> None:
    with over_zeromq() as (receiver, peer):
        deadline = time.monotonic() + 5
        while receiver.carrier.stirs:  # as long as nobody has joined; then nothing more is asked
            assert time.monotonic() < deadline
        peer.close()
        with Waiter([receiver]) as waiter:
            assert any(receiver.gone for _ in waiter.rounds(5))


OTHER_EDGE = pack_header(header_of(replace(BATCH, edge="1>2"), 0))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([OTHER_EDGE, *PARTS[1:]], "on edge 0>1 the peer sent a message for edge 1>2"),
        ([bytes(5000), *PARTS[1:]], "its header has 5000 bytes, at most"),
        ([HEAD, bytes(48)], r"it has parts of \[48\] bytes, and says \[48, 32\]"),
        ([HEAD, bytes(48), b""], r"it has parts of \[48, 0\] bytes"),
        ([b"\x91" * 2000, *PARTS[1:]], "its header is not"),
    ],
    ids=["another edge", "a large header", "a part too few", "an empty part", "deep nesting"],
)
def test_what_a_message_is_not(parts: list[bytes], said: str) -> None:
    with over_zeromq() as (receiver, peer):
        peer.send_multipart(parts)
        with pytest.raises(FrameError, match=said):
            receiver.receive(timeout=5)


def test_too_many_parts() -> None:
    with over_zeromq() as (receiver, peer):
        peer.send_multipart([HEAD] * 30)
        with pytest.raises(FrameError, match="it has more than the 17 parts that are allowed"):
            receiver.receive(timeout=5)


GUARDS = [Guard(b"secret"), Guard(b"secret", encrypts=True)]


@pytest.mark.parametrize("guard", GUARDS)
def test_who_speaks_no_zeromq_is_not_heard(guard: Guard) -> None:
    with ExitStack() as kept:
        carrier = ZeroCarrier("tcp://127.0.0.1:*", listens=True, guard=guard)
        receiver = kept.enter_context(closing(ParcelReceiver("0>1", "the peer", 2, carrier)))
        port = int(carrier.address.rpartition(":")[2])
        for noise in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)), b"\xff" + bytes(8) + b"\x7f", b""):
            stranger = kept.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            stranger.sendall(noise)
        friend = ZeroCarrier(carrier.address, listens=False, guard=guard)
        sender = kept.enter_context(closing(ParcelSender("0>1", "the peer", 2, friend)))
        sender.send(BATCH, timeout=5)
        assert received(receiver) is not None


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("other", [None, Guard(b"wrong"), Guard(b"wrong", encrypts=True)])
def test_who_does_not_know_the_secret_is_refused(other: Guard | None, guard: Guard) -> None:
    with ExitStack() as kept:
        carrier = ZeroCarrier("tcp://127.0.0.1:*", listens=True, guard=guard)
        receiver = kept.enter_context(closing(ParcelReceiver("0>1", "the peer", 2, carrier)))
        stranger = ParcelSender("0>1", "nobody", 2, ZeroCarrier(carrier.address, listens=False, guard=other))
        kept.callback(stranger.close)
        with suppress(PeerGoneError):  # it may be refused already
            stranger.send(BATCH, timeout=5)  # into the void
        with Waiter([stranger]) as waiter:
            assert any(stranger.gone for _ in waiter.rounds(5))
        friend = ZeroCarrier(carrier.address, listens=False, guard=guard)
        sender = kept.enter_context(closing(ParcelSender("0>1", "the peer", 2, friend)))
        sender.send(Activation(edge="0>1", step=7, tensors=BATCH.tensors), timeout=5)
        message = received(receiver)
        assert message is not None
        assert message.step == 7


COUNT = count()
STORE = HashStore()


@contextmanager
def over_gloo() -> Generator[tuple[Any, Callable[[bytes], None]]]:
    """Yield a receiver, and what sends a raw front in place of its peer."""
    name = f"hostile {next(COUNT)}"
    receiver = ParcelReceiver("0>1", "the peer", 2, DistributedCarrier(STORE, name, 1))
    store = PrefixStore(f"stepahead/{name}", STORE)
    store.set("0", "here")
    pairs = [GlooPair(store, 0, "127.0.0.1", timedelta(seconds=20))]

    def send(raw: bytes) -> None:
        pairs[0].put(torch.frombuffer(bytearray(raw.ljust(FRONT_BYTES, b"\0")), dtype=torch.uint8))

    try:
        yield receiver, send
    finally:
        pairs.clear()  # it hangs up, and the receiver's threads end
        receiver.close()


@many
@given(st.binary(max_size=300))
def test_random_fronts_over_gloo(raw: bytes) -> None:
    with over_gloo() as (receiver, send):
        send(raw)
        assert received(receiver, 0.05) is None


@many
@given(slips)
def test_changed_fronts_over_gloo(changes: list[tuple[int, int]]) -> None:
    good = FRONT.pack(len(HEAD), 2, 48, 32, *[0] * 15) + b"".join(PARTS)
    with over_gloo() as (receiver, send):
        send(changed(good, changes))
        received(receiver, 0.05)


def test_a_beat_is_no_message() -> None:
    with over_gloo() as (receiver, send):
        send(FRONT.pack(BEAT, *[0] * 18))
        with pytest.raises(LinkTimeoutError):
            receiver.receive(timeout=0.05)
        send(FRONT.pack(len(HEAD), 2, 48, 32, *[0] * 15) + b"".join(PARTS))
        assert received(receiver) is not None


def test_a_broken_connection_lets_go_of_its_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Event()

    class Pair(GlooPair):
        def __del__(self) -> None:
            ended.set()

    monkeypatch.setattr(distributed, "GlooPair", Pair)
    gc.disable()  # it ends by itself, not when the collector comes
    try:
        with over_gloo() as (receiver, send):
            send(b"\x7f" * 8)
            with pytest.raises(FrameError):
                receiver.receive(timeout=5)
        assert ended.wait(5)
    finally:
        gc.enable()


@many
@given(slips, st.integers(0, 4300))
def test_changed_slots_in_shared_memory(changes: list[tuple[int, int]], reach: int) -> None:
    bells = make_sockets()
    sender, receiver = SharedSender("0>1", "below", 2, bells[0]), SharedReceiver("0>1", "the peer", 2, bells[1])
    with closing(sender), closing(receiver):
        sender.send(BATCH, timeout=5)
        assert sender.memory is not None
        with mmap.mmap(sender.memory.descriptor, 0) as memory:  # as any process may write to it that has it
            for place, by in changes:
                memory[place % (reach + 1)] ^= by
        received(receiver, 0.05)
