"""The contract of every link: the same tests for each implementation."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest
import torch
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]

from stepahead.pipeline import (
    Activation,
    FrameError,
    Gradient,
    GradientKind,
    LinkClosedError,
    LinkTimeoutError,
    Mark,
    MarkKind,
    MessageError,
    PeerEndedError,
    TensorSpec,
)
from stepahead.workers import (
    Receiver,
    Sender,
    SharedReceiver,
    SharedSender,
    Waiter,
    make_sockets,
    memory_link,
)
from stepahead.workers.distributed import DistributedCarrier
from stepahead.workers.ledger import Entry, compare, entry_of
from stepahead.workers.pairs import GlooPair, Pair
from stepahead.workers.parcels import ParcelReceiver, ParcelSender
from stepahead.workers.waiting import Waitable
from stepahead.workers.zeromq import ZeroCarrier

Ends = tuple[Sender, Receiver]
Make = Callable[[str, int], Ends]
COUNT = count()


def in_memory(edge: str, capacity: int) -> Ends:
    return memory_link(edge, capacity, names=("stage 0", "stage 1"))


def in_shared_memory(edge: str, capacity: int) -> Ends:
    bells = make_sockets()
    return SharedSender(edge, "stage 1", capacity, bells[0]), SharedReceiver(edge, "stage 0", capacity, bells[1])


def over_ipc(edge: str, capacity: int) -> Ends:
    return over_zeromq(edge, capacity, f"ipc://@stepahead-test-{os.getpid()}-{next(COUNT)}")


def over_tcp(edge: str, capacity: int) -> Ends:
    return over_zeromq(edge, capacity, "tcp://127.0.0.1:*")


def over_zeromq(edge: str, capacity: int, address: str) -> Ends:
    there = ZeroCarrier(address, listens=True)
    here = ZeroCarrier(there.address, listens=False)
    return ParcelSender(edge, "stage 1", capacity, here), ParcelReceiver(edge, "stage 0", capacity, there)


def over_gloo(edge: str, capacity: int, values: Callable[[Store, int], Pair] | None = None) -> Ends:
    store = HashStore()
    here, there = (DistributedCarrier(store, edge, rank, values=values) for rank in (0, 1))
    return ParcelSender(edge, "stage 1", capacity, here), ParcelReceiver(edge, "stage 0", capacity, there)


def over_two_pairs(edge: str, capacity: int) -> Ends:
    """As between GPUs: what announces a message goes one way, its values another."""

    def values(store: Store, rank: int) -> Pair:
        return GlooPair(PrefixStore("values", store), rank, "127.0.0.1", timedelta(seconds=60))

    return over_gloo(edge, capacity, values)


def until(end: Waitable, condition: Callable[[], bool]) -> None:
    """Wait for what the other end's doing brings about; over some links that takes a while."""
    with Waiter([end]) as waiter:
        assert any(condition() for _ in waiter.rounds(5))


@pytest.fixture(params=[in_memory, in_shared_memory, over_ipc, over_tcp, over_gloo, over_two_pairs])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Ends] = []

    def remember(edge: str, capacity: int) -> Ends:
        made.append(request.param(edge, capacity))
        return made[-1]

    yield remember
    for ends in made:
        for end in ends:
            end.close()


@pytest.fixture
def link(make: Make) -> Ends:
    return make("0>1", 3)


def batch(step: int, rows: int = 4, edge: str = "0>1") -> Activation:
    return Activation(edge=edge, step=step, tensors=(torch.full((rows, 3), float(step)),), label=torch.arange(rows))


def gradient(step: int, tensor: torch.Tensor) -> Gradient:
    return Gradient(edge="0>1", step=step, tensors=(tensor,), kind=GradientKind.TARGET)


def test_messages_come_out_in_order_and_whole(link: Ends) -> None:
    sender, receiver = link
    for first in (0, 3, 6):  # around the ring and beyond
        for step in range(first, first + 3):
            sender.send(batch(step, rows=4 - step % 2), timeout=1)  # a shorter last batch
        for step in range(first, first + 3):
            message = receiver.receive(timeout=1)
            assert isinstance(message, Activation)
            assert message.step == step
            assert message.training
            assert TensorSpec.of(message.tensors[0]) == TensorSpec(torch.float32, (4 - step % 2, 3))
            assert torch.equal(message.tensors[0], batch(step, rows=4 - step % 2).tensors[0])
            assert message.label is not None
            assert torch.equal(message.label, torch.arange(4 - step % 2))


def test_values_are_those_of_the_moment_of_sending(link: Ends) -> None:
    sender, receiver = link
    values = torch.ones(4)
    sender.send(gradient(0, values), timeout=1)
    values.zero_()
    message = receiver.receive(timeout=1)
    assert isinstance(message, Gradient)
    assert message.tensors[0].tolist() == [1.0] * 4
    assert message.kind is GradientKind.TARGET


def test_what_was_received_is_its_receivers_own(link: Ends) -> None:
    sender, receiver = link
    sender.send(gradient(0, torch.ones(4)), timeout=1)
    kept = receiver.receive(timeout=1)
    assert isinstance(kept, Gradient)
    for step in range(1, 8):
        sender.send(gradient(step, torch.zeros(4)), timeout=1)
        receiver.receive(timeout=1)
    assert kept.tensors[0].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 5).t(),
        torch.randn(8)[::2],
        torch.tensor(1.5),
        torch.empty(0, 7),
        torch.randn(700, 1000),
        torch.randn(4, requires_grad=True),
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(4, dtype=torch.complex64).conj().imag,
        torch.tensor([True, False]),
    ],
    ids=["transposed", "strided", "one number", "empty", "2.8 MB", "attached", "conjugated", "negated", "truths"],
)
def test_tensors_of_all_sizes_travel(link: Ends, tensor: torch.Tensor) -> None:
    sender, receiver = link
    sender.send(gradient(0, tensor), timeout=1)
    message = receiver.receive(timeout=1)
    assert isinstance(message, Gradient)
    (copy,) = message.tensors
    assert torch.equal(copy, tensor)
    assert copy.is_contiguous()
    assert not copy.requires_grad


def test_a_larger_message_comes_through_once_there_is_room(link: Ends) -> None:
    sender, receiver = link
    sizes = [2, 2, 90_000, 3, 200_000]

    def send_all() -> None:
        for step, size in enumerate(sizes):
            sender.send(gradient(step, torch.full((size,), float(step))), timeout=5)

    thread = threading.Thread(target=send_all)
    thread.start()
    for step, size in enumerate(sizes):
        message = receiver.receive(timeout=5)
        assert isinstance(message, Gradient)
        assert torch.equal(message.tensors[0], torch.full((size,), float(step)))
    thread.join()


def test_a_full_link_takes_nothing_more(link: Ends) -> None:
    sender, receiver = link
    assert [sender.try_send(batch(step)) for step in range(4)] == [True, True, True, False]
    assert sender.credits == 0
    receiver.receive(timeout=1)
    receiver.receive(timeout=1)
    until(sender, lambda: sender.credits == 2)  # they may come back several at a time
    assert sender.try_send(batch(3))
    assert [receiver.receive(timeout=1).step for _ in range(2)] == [2, 3]
    until(sender, lambda: sender.credits == 3)


def test_what_waits_is_counted_without_being_taken(link: Ends) -> None:
    sender, receiver = link
    for step in range(3):
        sender.send(batch(step), timeout=1)
    until(receiver, lambda: receiver.waiting == 3)
    for _ in range(3):
        receiver.receive(timeout=1)
    until(sender, lambda: sender.waiting == 0)


def test_two_full_links_that_face_each_other_move_on(make: Make) -> None:
    """Each side sends 500 messages before it expects that many, through links that hold one: it must drain to send."""
    down, up = make("0>1", 1), make("0>1", 1)
    received: dict[str, list[int]] = {"above": [], "below": []}

    def work(name: str, sender: Sender, receiver: Receiver) -> None:
        with Waiter([sender, receiver]) as waiter:
            sent = 0
            while sent < 500 or len(received[name]) < 500:
                while (message := receiver.try_receive() if len(received[name]) < 500 else None) is not None:
                    received[name].append(message.step)
                if sent < 500 and sender.try_send(batch(sent)):
                    sent += 1
                elif (sent < 500 or len(received[name]) < 500) and not waiter.wait(5):
                    return

    threads = [
        threading.Thread(target=work, args=("above", down[0], up[1])),
        threading.Thread(target=work, args=("below", up[0], down[1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert received["above"] == received["below"] == list(range(500))


def test_timeouts_name_operation_peer_and_limit(link: Ends) -> None:
    sender, receiver = link
    with pytest.raises(LinkTimeoutError, match=r"cannot receive on edge 0>1: stage 0 sent nothing for 0.01 s, after 0"):
        receiver.receive(timeout=0.01)
    for step in range(3):
        sender.send(batch(step), timeout=1)
    full = r"cannot send Activation 3 on edge 0>1: stage 1 took nothing for 0.01 s, and all 3 places are full"
    with pytest.raises(LinkTimeoutError, match=full):
        sender.send(batch(3), timeout=0.01)
    with pytest.raises(TimeoutError):
        sender.send(batch(3), timeout=0.0)


def test_a_closed_link_still_gives_what_was_sent(link: Ends) -> None:
    sender, receiver = link
    sender.send(batch(0), timeout=1)
    sender.send(Mark(edge="0>1", step=0, kind=MarkKind.STOP), timeout=1)
    sender.close()
    assert isinstance(receiver.receive(timeout=1), Activation)
    assert receiver.receive(timeout=1) == Mark(edge="0>1", step=0, kind=MarkKind.STOP)
    with pytest.raises(PeerEndedError, match="cannot receive any more on edge 0>1: stage 0 has closed it"):
        receiver.receive(timeout=1)


def test_a_sender_hears_that_the_receiver_closed(link: Ends) -> None:
    sender, receiver = link
    sender.send(batch(0), timeout=1)
    until(receiver, lambda: receiver.waiting == 1)
    receiver.close()
    until(sender, lambda: sender.gone)
    with pytest.raises(PeerEndedError, match="cannot send any more on edge 0>1: stage 1 has closed it"):
        sender.send(batch(1), timeout=1)


def test_a_sender_is_settled_once_its_receiver_wants_no_more(link: Ends) -> None:
    sender, receiver = link
    sender.send(batch(0), timeout=1)
    assert receiver.receive(timeout=1).step == 0
    assert receiver.settled
    receiver.close()
    until(sender, lambda: sender.settled)


@pytest.mark.parametrize("make", [over_ipc, over_tcp, over_gloo], indirect=True)
def test_a_sender_is_not_settled_while_its_process_holds_what_it_sent(link: Ends) -> None:
    sender, receiver = link
    sender.send(batch(0), timeout=1)
    assert not sender.settled
    receiver.receive(timeout=1)
    assert not sender.settled


def test_a_closed_end_cannot_be_used(link: Ends) -> None:
    sender, receiver = link
    sender.close()
    receiver.close()
    sender.close()
    with pytest.raises(LinkClosedError, match="cannot send on edge 0>1: this end was closed"):
        sender.try_send(batch(0))
    with pytest.raises(LinkClosedError, match="cannot receive on edge 0>1: this end was closed"):
        receiver.try_receive()


def test_to_wait_at_a_closed_end_is_refused(link: Ends) -> None:
    sender, receiver = link
    sender.close()
    receiver.close()
    with pytest.raises(LinkClosedError, match="cannot send on edge 0>1: this end was closed"):
        sender.send(batch(0), timeout=1)
    with pytest.raises(LinkClosedError, match="cannot receive on edge 0>1: this end was closed"):
        receiver.receive(timeout=1)


def test_statistics_count(link: Ends) -> None:
    sender, receiver = link
    for step in range(3):
        sender.send(batch(step), timeout=1)
    for _ in range(2):
        receiver.receive(timeout=1)
    until(sender, lambda: sender.waiting == 1)
    until(receiver, lambda: receiver.waiting == 1)
    sent, received = sender.statistics(), receiver.statistics()
    assert (sent.messages, sent.waiting, sent.capacity) == (3, 1, 3)
    assert (received.messages, received.waiting, received.capacity) == (2, 1, 3)
    assert sent.bytes == 3 * (64 + 64)  # 4 rows of 3 floats and 4 labels, each on its own cache line
    assert received.bytes == 2 * (64 + 64)


def test_a_borrowed_message_stays_whole_until_it_is_given_back(make: Make) -> None:
    sender, receiver = make("0>1", 1)
    sender.send(batch(0), timeout=1)
    until(receiver, lambda: receiver.waiting == 1)
    borrowed = receiver.try_receive(own=False)
    assert isinstance(borrowed, Activation)
    with Waiter([sender]) as waiter:
        waiter.wait(0)
    sent = sender.try_send(batch(1))  # where the values are the link's own, there is no place for it yet
    assert torch.equal(borrowed.tensors[0], batch(0).tensors[0])
    receiver.give_back()
    receiver.give_back()
    until(sender, lambda: sent or sender.try_send(batch(1)))
    assert receiver.receive(timeout=1).step == 1


def test_a_message_for_another_edge_is_refused(link: Ends) -> None:
    with pytest.raises(MessageError, match="a message for edge 1>2 was to be sent on edge 0>1"):
        link[0].try_send(batch(0, edge="1>2"))


@pytest.mark.parametrize(("skip", "said"), [(1, "something was lost"), (-1, "a message came twice")])
def test_gaps_and_duplicates_are_named(link: Ends, skip: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = link
    sender.send(batch(0), timeout=1)
    receiver.receive(timeout=1)
    header_of = sender.header_for
    monkeypatch.setattr(sender, "header_for", lambda message: replace(header_of(message), sequence=1 + skip))
    sender.send(batch(1), timeout=1)
    with pytest.raises(FrameError, match=rf"on edge 0>1 stage 0 sent message \d in the place of 1: {said}"):
        receiver.receive(timeout=1)


def test_ledgers_agree(link: Ends) -> None:
    sender, receiver = link
    entries: list[Entry] = []
    sender.on_message = lambda number, message: entries.append(entry_of("sent", number, message))
    receiver.on_message = lambda number, message: entries.append(entry_of("received", number, message))
    for step in range(5):
        sender.send(batch(step), timeout=1)
        receiver.receive(timeout=1)
    assert compare(entries) == 5
    with pytest.raises(FrameError, match="on edge 0>1 5 activations were sent and 4 received; they differ from"):
        compare(entries[:-1])
    changed = [(*entries[0][:5], entries[0][5] ^ 1), *entries[1:]]
    with pytest.raises(FrameError, match="they differ from 0 on"):
        compare(changed)
