"""What only the link through shared memory has: memory that cannot shrink or run out, and ends that are replaced."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from launcher import fork

from stepahead.pipeline import FrameError, Gradient, GradientKind, LinkError, PeerGoneError
from stepahead.workers import SharedReceiver, SharedSender, Waiter, make_sockets
from stepahead.workers.ring import CONTROL_BYTES, HEAD, MAGIC, SEALS, SENT, TAKEN, Memory


def gradient(step: int, size: int = 4) -> Gradient:
    tensor = torch.full((size,), float(step))
    return Gradient(edge="0>1", step=step, tensors=(tensor,), kind=GradientKind.TARGET)


@pytest.fixture
def link() -> Iterator[tuple[SharedSender, SharedReceiver]]:
    sender, receiver = make_link()
    yield sender, receiver
    sender.close()
    receiver.close()


@pytest.fixture
def bells() -> Iterator[tuple[socket.socket, socket.socket]]:
    bells = make_sockets()
    yield bells
    for bell in bells:
        bell.close()


def make_link(capacity: int = 3) -> tuple[SharedSender, SharedReceiver]:
    bells = make_sockets()
    return SharedSender("0>1", "stage 1", capacity, bells[0]), SharedReceiver("0>1", "stage 0", capacity, bells[1])


@contextmanager
def child(work: Callable[[], None]) -> Generator[int]:
    """Run `work` in a forked process."""
    pid = fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    yield pid
    os.waitpid(pid, 0)


def test_no_memory_left_is_said_before_anything_is_written(link: tuple[SharedSender, SharedReceiver]) -> None:
    sender, _ = link
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(LinkError, match=r"no memory for edge 0>1: 3 slots of 3,908 KiB cannot be had \(.*--window"):
            sender.try_send(gradient(0, size=1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sender.try_send(gradient(0, size=1_000_000))


@pytest.mark.parametrize(
    ("content", "seal", "said"),
    [
        (b"x" * 8192, False, "is not sealed"),
        (b"x" * 100, True, "has 100 bytes, and needs at least 4096"),
        (HEAD.pack(b"wrong!!!", 1, 0) + bytes(8192), True, "the memory of a link lies"),
        (HEAD.pack(MAGIC, 9999, 4096) + bytes(8192), True, "the memory of a link lies: 9999 slots"),
        (HEAD.pack(MAGIC, 2, 2**40) + bytes(8192), True, "the memory of a link lies"),
        (HEAD.pack(MAGIC, 1, 5) + bytes(4096 - HEAD.size + 8192 + 5), True, "the memory of a link lies: 1 slots of 5"),
    ],
)
def test_memory_that_lies_is_refused(content: bytes, seal: bool, said: str) -> None:
    descriptor = os.memfd_create("liar", os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    if seal:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    with pytest.raises(FrameError, match=said):
        Memory(descriptor)
    os.close(descriptor)


def test_a_slot_that_lies_is_refused(link: tuple[SharedSender, SharedReceiver]) -> None:
    sender, receiver = link
    sender.send(gradient(0), timeout=1)
    assert sender.memory is not None
    os.pwrite(sender.memory.descriptor, b"\xff" * 7 + b"\x7f", CONTROL_BYTES)
    with pytest.raises(FrameError, match="a link frame lies: its form has 9223372036854775807 bytes, at most 4096"):
        receiver.receive(timeout=1)


def test_a_header_that_claims_more_than_its_slot_is_refused(link: tuple[SharedSender, SharedReceiver]) -> None:
    sender, receiver = link
    sender.send(gradient(0), timeout=1)
    large = gradient(0, size=100_000)
    assert sender.memory is not None
    raw = sender.header_for(large).form.raw
    os.pwrite(sender.memory.descriptor, struct.pack("<QQQ", len(raw), 0, 0) + raw, CONTROL_BYTES)
    with pytest.raises(FrameError, match=r"it speaks of 400000 bytes in a slot of 4096"):
        receiver.receive(timeout=1)


@pytest.mark.parametrize("count", [0, 6, 2**63])
def test_a_count_of_messages_that_cannot_be_is_refused(link: tuple[SharedSender, SharedReceiver], count: int) -> None:
    sender, receiver = link
    for step in range(2):
        sender.send(gradient(step), timeout=1)
        receiver.receive(timeout=1)
    assert sender.memory is not None
    sender.memory.set(SENT, count)
    for _ in range(2):  # what was refused is not believed the next time
        with pytest.raises(FrameError, match=r"on edge 0>1 stage 0 sent what makes -?\d+ of 3 messages wait"):
            receiver.try_receive()
    sender.memory.set(TAKEN, max(count, 6))
    sender.try_send(gradient(2))
    for _ in range(2):
        with pytest.raises(FrameError, match=r"on edge 0>1 stage 1 took what makes -\d+ of 3 messages wait"):
            sender.try_send(gradient(3))  # it is looked at when what it said last leaves no room


def test_no_wake_is_lost_between_processes() -> None:
    """Both wait for each other's next message all the time; one that is not rung for would time out."""
    there, back = make_sockets(), make_sockets()

    def echo() -> None:
        there[0].close()
        back[1].close()
        receiver, sender = SharedReceiver("0>1", "above", 1, there[1]), SharedSender("0>1", "above", 1, back[0])
        for _ in range(5000):
            sender.send(receiver.receive(timeout=10), timeout=10)

    with child(echo):
        there[1].close()
        back[0].close()
        sender, receiver = SharedSender("0>1", "below", 1, there[0]), SharedReceiver("0>1", "below", 1, back[1])
        for step in range(5000):
            sender.send(gradient(step), timeout=10)
            assert receiver.receive(timeout=10).step == step
    sender.close()
    receiver.close()


def test_who_is_awake_is_not_rung_for(link: tuple[SharedSender, SharedReceiver]) -> None:
    sender, receiver = link
    sender.send(gradient(0), timeout=1)
    receiver.refresh()  # the memory comes over the socket
    sender.send(gradient(1), timeout=1)
    with Waiter([receiver]) as waiter:
        assert not waiter.look()
        assert receiver.waiting == 2
        receiver.doze(True)
        sender.send(gradient(2), timeout=1)
        assert waiter.look()


def test_a_sender_that_is_killed_is_gone_after_its_last_message(bells: tuple[socket.socket, socket.socket]) -> None:
    def send_and_die() -> None:
        bells[1].close()
        SharedSender("0>1", "stage 1", 3, bells[0]).send(gradient(0), timeout=1)
        os.kill(os.getpid(), signal.SIGKILL)

    with child(send_and_die):
        bells[0].close()
        receiver = SharedReceiver("0>1", "stage 0", 3, bells[1])
        assert receiver.receive(timeout=5).step == 0
        with pytest.raises(PeerGoneError, match="cannot receive on edge 0>1: stage 0 is gone"):
            receiver.receive(timeout=5)
        receiver.close()


def test_a_receiver_that_is_killed_is_gone(bells: tuple[socket.socket, socket.socket]) -> None:
    def take_and_die() -> None:
        bells[0].close()
        SharedReceiver("0>1", "stage 0", 3, bells[1]).receive(timeout=5)
        os.kill(os.getpid(), signal.SIGKILL)

    with child(take_and_die):
        bells[1].close()
        sender = SharedSender("0>1", "stage 1", 3, bells[0])
        sender.send(gradient(0), timeout=5)
        with Waiter([sender]) as waiter:
            while waiter.wait(0.5):  # its credit, and then its end
                pass
        with pytest.raises(PeerGoneError, match="cannot send on edge 0>1: stage 1 is gone"):
            sender.send(gradient(1), timeout=5)
        sender.close()


def test_a_new_sender_takes_the_place_of_a_dead_one(bells: tuple[socket.socket, socket.socket]) -> None:
    """With the duplicate of the memory that the supervisor kept: nothing is lost, nothing comes twice."""
    duplicates: list[int] = []
    first = SharedSender(
        "0>1", "stage 1", 3, bells[0], on_memory=lambda descriptor: duplicates.append(os.dup(descriptor))
    )
    receiver = SharedReceiver("0>1", "stage 0", 3, bells[1])
    for step in range(3):
        first.send(gradient(step), timeout=1)
    assert receiver.receive(timeout=1).step == 0
    first.bell.close()  # it dies, with two messages in the ring

    again = make_sockets()
    receiver.adopt(again[1])
    second = SharedSender("0>1", "stage 1", 3, again[0], memory=duplicates[-1])
    assert (second.statistics().messages, second.credits) == (3, 1)
    second.send(gradient(3), timeout=1)
    assert [receiver.receive(timeout=1).step for _ in range(3)] == [1, 2, 3]
    second.send(gradient(4), timeout=1)
    assert receiver.receive(timeout=1).step == 4
    for end in (first, second, receiver):
        end.close()


def test_a_new_receiver_takes_the_place_of_a_dead_one() -> None:
    sender, first = make_link()
    for step in range(3):
        sender.send(gradient(step), timeout=1)
    assert first.receive(timeout=1).step == 0
    first.bell.close()

    again = make_sockets()
    sender.adopt(again[0])
    second = SharedReceiver("0>1", "stage 0", 3, again[1])
    assert sender.credits == 1
    sender.send(gradient(3), timeout=1)
    assert [second.receive(timeout=1).step for _ in range(3)] == [1, 2, 3]
    sender.refresh()
    assert sender.credits == 3
    for end in (sender, first, second):
        end.close()


def test_a_borrowed_message_holds_its_place() -> None:
    sender, receiver = make_link(capacity=1)
    sender.send(gradient(0), timeout=1)
    receiver.refresh()
    borrowed = receiver.try_receive(own=False)
    assert isinstance(borrowed, Gradient)
    sender.refresh()
    assert not sender.try_send(gradient(1))
    receiver.give_back()
    sender.refresh()
    assert sender.try_send(gradient(1))
    sender.close()
    receiver.close()


def test_a_receiver_that_has_borrowed_adopts_a_new_sender() -> None:
    duplicates: list[int] = []
    bells = make_sockets()
    first = SharedSender(
        "0>1", "stage 1", 2, bells[0], on_memory=lambda descriptor: duplicates.append(os.dup(descriptor))
    )
    receiver = SharedReceiver("0>1", "stage 0", 2, bells[1])
    for step in range(2):
        first.send(gradient(step), timeout=1)
    receiver.refresh()
    assert receiver.try_receive(own=False) is not None
    first.bell.close()
    again = make_sockets()
    receiver.adopt(again[1])
    second = SharedSender("0>1", "stage 1", 2, again[0], memory=duplicates[-1])
    assert (second.waiting, second.credits) == (1, 1)
    assert receiver.receive(timeout=1).step == 1
    receiver.give_back()
    second.refresh()
    assert (second.waiting, second.credits) == (0, 2)
    for end in (first, second, receiver):
        end.close()


def dying_sender(capacity: int) -> tuple[SharedReceiver, int]:
    """Return the receiver of a link that is full and whose sender has died, and a duplicate of its memory."""
    duplicates: list[int] = []
    bells = make_sockets()
    sender = SharedSender(
        "0>1", "stage 1", capacity, bells[0], on_memory=lambda descriptor: duplicates.append(os.dup(descriptor))
    )
    receiver = SharedReceiver("0>1", "stage 0", capacity, bells[1])
    for step in range(capacity):
        sender.send(gradient(step), timeout=1)
    receiver.refresh()
    sender.close()
    return receiver, duplicates[-1]


def test_a_new_sender_that_dozes_is_woken_when_it_is_adopted() -> None:
    """What was taken before rang at a socket whose other end was dead."""
    receiver, duplicate = dying_sender(2)
    again = make_sockets()
    sender = SharedSender("0>1", "stage 1", 2, again[0], memory=duplicate)
    assert not sender.try_send(gradient(2))
    sender.doze(True)
    assert [receiver.receive(timeout=1).step for _ in range(2)] == [0, 1]
    assert select.select([sender], [], [], 0)[0] == []
    receiver.adopt(again[1])
    assert select.select([sender], [], [], 0)[0] == [sender]
    sender.send(gradient(2), timeout=1)
    assert receiver.receive(timeout=1).step == 2
    sender.close()
    receiver.close()


def test_a_message_may_be_borrowed_before_the_memory_is_handed_over_again() -> None:
    receiver, duplicate = dying_sender(2)
    again = make_sockets()
    receiver.adopt(again[1])
    sender = SharedSender("0>1", "stage 1", 2, again[0], memory=duplicate)
    borrowed = receiver.try_receive(own=False)
    assert isinstance(borrowed, Gradient)
    receiver.refresh()
    assert torch.equal(borrowed.tensors[0], gradient(0).tensors[0])
    receiver.give_back()
    assert receiver.receive(timeout=1).step == 1
    sender.close()
    receiver.close()


def test_a_borrowed_message_outlives_its_link(link: tuple[SharedSender, SharedReceiver]) -> None:
    sender, receiver = link
    sender.send(gradient(7, size=100_000), timeout=1)
    with Waiter([receiver]) as waiter:
        waiter.wait(1)
    borrowed = receiver.try_receive(own=False)
    assert isinstance(borrowed, Gradient)
    sender.close()
    receiver.close()
    assert torch.equal(borrowed.tensors[0], gradient(7, size=100_000).tensors[0])


@pytest.mark.parametrize(("capacity", "left"), [(1, 0), (2, 1), (3, 1), (8, 2)])
def test_a_sender_is_rung_for_when_a_quarter_is_left(capacity: int, left: int) -> None:
    bells = make_sockets()
    sender = SharedSender("0>1", "stage 1", capacity, bells[0])
    receiver = SharedReceiver("0>1", "stage 0", capacity, bells[1])
    for step in range(capacity):
        sender.send(gradient(step), timeout=1)
    assert not sender.try_send(gradient(capacity))
    sender.doze(True)
    waiting = []
    for _ in range(capacity):
        receiver.receive(timeout=1)
        with suppress(BlockingIOError):
            if sender.bell.recv(8):
                waiting.append(receiver.waiting)
    assert max(waiting) == left
    sender.close()
    receiver.close()


def test_memory_of_another_size_is_refused() -> None:
    bells = make_sockets()
    receiver = SharedReceiver("0>1", "stage 0", 3, bells[1])
    other = Memory.create(2, 4, "0>1")
    socket.send_fds(bells[0], [b"+"], [other.descriptor])
    with Waiter([receiver]) as waiter, pytest.raises(FrameError, match="edge 0>1 has 2 slots, and the link 3"):
        waiter.wait(1)
    with pytest.raises(FrameError, match="edge 0>1 has 2 slots, and the link 3"):
        SharedSender("0>1", "stage 1", 3, bells[0], memory=os.dup(other.descriptor))
    other.close()
    receiver.close()
    bells[0].close()


def test_memory_that_does_not_fit_on_is_refused_and_let_go(link: tuple[SharedSender, SharedReceiver]) -> None:
    sender, receiver = link
    sender.send(gradient(0), timeout=1)
    receiver.receive(timeout=1)
    other = Memory.create(3, 4, "0>1")
    socket.send_fds(sender.bell, [b"+"], [other.descriptor])
    with Waiter([receiver]) as waiter, pytest.raises(FrameError, match="goes on at 0, not at 1"):
        waiter.wait(1)
    other.close()
    other.close()
    sender.send(gradient(1), timeout=1)
    assert receiver.receive(timeout=1).step == 1


def test_nothing_is_left_when_both_ends_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        sender, receiver = make_link()
        sender.send(gradient(0), timeout=1)
        receiver.receive(timeout=1)
        sender.close()
        receiver.close()
    assert len(os.listdir("/proc/self/fd")) == before
