"""A worker at its post: it hears its supervisor and its peers while it works and while it waits."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from stepahead.pipeline import Gradient, GradientKind, LinkTimeoutError
from stepahead.workers import Control, Place, Post, SharedReceiver, SharedSender, Wait, Waiter, Wiring, make_sockets
from stepahead.workers import post as post_module


@pytest.fixture
def kept() -> Iterator[ExitStack]:
    """Closes what a test has made."""
    with ExitStack() as stack:
        yield stack


def make_post(kept: ExitStack, folder: Path, timeout: float = 20.0) -> tuple[Post, Control]:
    """Return a post, and its supervisor's end of the control connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = Place(
        name="0",
        run=folder,
        wiring=Wiring(devices=("cpu", "cpu"), hosts=(0, 0)),
        cores=(),
        window=2,
        prefetch=4,
        timeout=timeout,
        spin=0.0,
        ledger=False,
        telemetry=False,
        torchrun=False,
    )
    post, supervisor = Post(place, Control(ours, "the supervisor")), Control(theirs, "a worker")
    for closing in (post.control, post.telemetry, supervisor):
        kept.callback(closing.close)
    return post, supervisor


def make_link(kept: ExitStack, edge: str = "0>1", capacity: int = 2) -> tuple[SharedSender, SharedReceiver]:
    bells = make_sockets()
    sender = SharedSender(edge, "below", capacity, bells[0])
    receiver = SharedReceiver(edge, "above", capacity, bells[1])
    for end in (sender, receiver):
        kept.callback(end.close)
    return sender, receiver


def gradient(step: int, edge: str = "0>1") -> Gradient:
    return Gradient(edge=edge, step=step, tensors=(torch.zeros(4),), kind=GradientKind.TARGET)


@pytest.mark.parametrize("word", ["stop", "abandon"])
def test_a_word_that_came_while_it_worked_is_heard_before_it_waits(
    word: str, tmp_path: Path, kept: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_module, "REPORT_EVERY", 0.0)
    post, supervisor = make_post(kept, tmp_path)
    _, receiver = make_link(kept)

    def actions() -> Iterator[Wait | None]:
        supervisor.send(word)
        yield None
        while not post.stopping:
            yield "wait_input"

    begun = time.monotonic()
    post.drive(actions(), [receiver], lambda: None)
    assert time.monotonic() - begun < 5.0
    assert (post.stopping, post.abandoned) == (word == "stop", word == "abandon")


def test_who_keeps_it_waiting_is_named(tmp_path: Path, kept: ExitStack) -> None:
    post, _ = make_post(kept, tmp_path, timeout=0.05)
    full_in, input_ = make_link(kept, "data>0")
    output, _far = make_link(kept)
    for step in range(2):
        full_in.send(gradient(step, "data>0"), timeout=1)
        output.send(gradient(step), timeout=1)
    input_.refresh()

    def actions() -> Iterator[Wait | None]:
        while True:
            yield "wait_credit"

    said = r"stage 0 did nothing for 0.05 s at step 0 \(wait_credit\): below took nothing more on edge 0>1; --timeout"
    with pytest.raises(LinkTimeoutError, match=said):
        post.drive(actions(), [input_, output], lambda: None)


def test_time_in_which_it_was_stopped_is_not_held_against_its_peers(tmp_path: Path, kept: ExitStack) -> None:
    post, _ = make_post(kept, tmp_path, timeout=0.1)
    _, receiver = make_link(kept)
    waits = 0

    def actions() -> Iterator[Wait | None]:
        nonlocal waits
        while waits < 3:
            waits += 1
            yield "wait_input"  # each takes the whole of the timeout
            post.resume()

    post.drive(actions(), [receiver], lambda: None)
    assert waits == 3


def test_an_end_with_news_does_not_deafen_the_others(tmp_path: Path, kept: ExitStack) -> None:
    sender, receiver = make_link(kept)
    other, quiet = make_link(kept, "1>2")
    post, supervisor = make_post(kept, tmp_path)
    sender.send(gradient(0), timeout=1)
    receiver.receive(timeout=1)
    with Waiter([receiver, quiet, post.control]) as waiter:
        supervisor.send("stop")
        other.send(gradient(0, "1>2"), timeout=1)
        sender.send(gradient(1), timeout=1)
        assert waiter.wait(1)
        assert quiet.try_receive() is not None
        assert [message["kind"] for message, _ in post.control.take()] == ["stop"]
        assert receiver.try_receive() is not None
        assert not waiter.wait(0.01)
