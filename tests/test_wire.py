"""Messages as bytes: whole on the other side, and nothing but a typed error for what is no message."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepahead.pipeline import (
    Activation,
    FrameError,
    Gradient,
    GradientKind,
    Mark,
    MarkKind,
    Message,
    MessageError,
)
from stepahead.workers import wire
from stepahead.workers.packing import pack

GOOD: list[Any] = [1, "0>1", 0, 1, [[0, [8, 4]]], [9, [8]]]


def through_bytes(message: Message) -> Message:
    header = wire.header_of(message, 3)
    region = torch.zeros(header.form.payload_bytes, dtype=torch.uint8)
    wire.store(message, wire.places_in(region, header.form))
    decoded = wire.header_from(header.sequence, header.step, header.form.raw)
    assert (decoded.sequence, decoded.step, decoded.form.raw) == (3, message.step, header.form.raw)
    loaded = wire.load(decoded, wire.places_in(region, decoded.form))
    region.fill_(255)  # what was loaded must be its own
    return loaded


@pytest.mark.parametrize("dtype", wire.DTYPES, ids=str)
def test_every_dtype_travels(dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (3, 5)).to(dtype)
    loaded = through_bytes(Activation(edge="0>1", step=4, tensors=(values,), label=values[:, 0]))
    assert isinstance(loaded, Activation)
    assert loaded.label is not None
    assert loaded.tensors[0].dtype == loaded.label.dtype == dtype
    as_bytes = values.view(torch.uint8) if dtype.itemsize == 1 else values
    assert torch.equal(loaded.tensors[0].view(as_bytes.dtype), as_bytes)


def test_every_dtype_that_torch_has_is_known_or_refused() -> None:
    exotic = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
    known = {str(dtype).removeprefix("torch.") for dtype in wire.DTYPES}
    trained_with = {"float32", "float64", "float16", "bfloat16", "complex64", "int64", "int32", "uint8", "bool"}
    assert trained_with <= known <= exotic
    with pytest.raises(MessageError, match=r"a tensor .*\[2\] of layout torch.sparse_coo cannot travel over edge 0>1"):
        wire.header_of(Activation(edge="0>1", step=0, tensors=(torch.ones(2).to_sparse(),)), 0)
    with pytest.raises(MessageError, match="cannot travel over edge 0>1; make it dense"):
        wire.header_of(Activation(edge="0>1", step=0, tensors=(torch.ones(2, device="meta"),)), 0)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(4, 3).t(), torch.randn(6)[::2], torch.tensor(2.5), torch.empty(0, 3), torch.randn(2, 3).conj()],
    ids=["transposed", "strided", "one number", "empty", "plain"],
)
def test_odd_tensors_travel(tensor: torch.Tensor) -> None:
    loaded = through_bytes(Gradient(edge="1>2", step=0, tensors=(tensor, tensor), kind=GradientKind.TRUTH))
    assert isinstance(loaded, Gradient)
    assert loaded.kind is GradientKind.TRUTH
    for copy in loaded.tensors:
        assert torch.equal(copy, tensor)
        assert copy.is_contiguous()


def test_conjugated_and_attached_tensors_travel_as_values() -> None:
    complex_numbers = torch.randn(3, dtype=torch.complex64).conj()
    attached = torch.randn(3, requires_grad=True) * 2
    loaded = through_bytes(Activation(edge="0>1", step=0, tensors=(complex_numbers, attached)))
    assert isinstance(loaded, Activation)
    assert torch.equal(loaded.tensors[0], complex_numbers.resolve_conj())
    assert torch.equal(loaded.tensors[1], attached.detach())
    assert not loaded.tensors[1].requires_grad


@pytest.mark.parametrize("kind", MarkKind)
def test_marks_and_modes_travel(kind: MarkKind) -> None:
    assert through_bytes(Mark(edge="0>1", step=2, kind=kind)) == Mark(edge="0>1", step=2, kind=kind)
    evaluation = through_bytes(Activation(edge="0>1", step=2, tensors=(torch.ones(1),), training=False))
    assert isinstance(evaluation, Activation)
    assert not evaluation.training


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, 2, "the version is 2"),
        (1, 5, "its edge is 5"),
        (1, "x" * 65, "its edge is 'xxxx"),
        (2, 3, "the kind is 3"),
        (2, True, "the kind is a bool"),
        (2, 2, "Mark with 2 tensors"),
        (2, 1, "Gradient with 2 tensors"),
        (3, 2, "the flag is 2"),
        (4, [], "Activation with 1 tensors"),
        (4, [[0, [2**20] * 3]], "the number of values is"),
        (4, [[0, [0, 2**40, 2**40]]], "the number of values is"),
        (4, [[99, [8]]], "a dtype is 99"),
        (4, [[0, [8, -4]]], "a size is -4"),
        (4, [[0, [1.5]]], "a size is a float"),
        (4, [[0]], "a tensor is an array of 1"),
        (4, "abc", "the list of tensors is a str"),
        (5, [9], "a tensor is an array of 1"),
    ],
)
def test_each_lie_of_a_header_is_named(place: int, value: Any, said: str) -> None:
    fields = list(GOOD)
    fields[place] = value
    with pytest.raises(FrameError, match="a link frame lies") as caught:
        wire.header_from(0, 0, pack(fields))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\x91" * 4000,  # nested 4,000 deep
        pack(GOOD)[:-1],
        pack(GOOD) + b"\x00",
        pack({"a": 1}),
        pack([msgpack.ExtType(5, b"x")] * 6),
        pack([msgpack.Timestamp(1)] * 6),
        b"x" * (wire.FORM_LIMIT + 1),
    ],
    ids=["nothing", "invalid", "huge", "deep", "cut off", "too long", "a map", "extended", "a time", "over the limit"],
)
def test_what_is_no_header_is_refused(raw: bytes) -> None:
    with pytest.raises(FrameError, match="a link frame lies"):
        wire.header_from(0, 0, bytes(raw))


def test_numbers_out_of_range_are_refused() -> None:
    much = 2**64 - 1
    for sequence, step, said in ((much, 0, "number"), (0, much, "step")):
        with pytest.raises(FrameError, match=f"a link frame lies: its {said} is {much}, at most"):
            wire.header_from(sequence, step, pack(GOOD))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_a_header(raw: bytes) -> None:
    with suppress(FrameError):
        assert isinstance(wire.header_from(0, 0, bytes(raw)), wire.Header)


@given(st.integers(0, 60), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_a_header(place: int, value: int) -> None:
    raw = bytearray(pack(GOOD))
    raw[place % len(raw)] = value
    with suppress(FrameError):
        assert wire.header_from(0, 0, bytes(raw)).form.payload_bytes >= 0


def test_the_largest_header_fits() -> None:
    tensor = torch.ones((1,) * 16)
    header = wire.header_of(Activation(edge="0>1", step=0, tensors=(tensor,) * 16), 0)
    assert len(header.form.raw) < wire.FORM_LIMIT
    with pytest.raises(MessageError, match=r"a message on edge 0>1 has 17 tensors; a link carries at most 16"):
        wire.header_of(Activation(edge="0>1", step=0, tensors=(tensor,) * 17), 0)
    with pytest.raises(MessageError, match=r"has 17 dimensions; a link carries at most 16"):
        wire.header_of(Activation(edge="0>1", step=0, tensors=(torch.ones((1,) * 17),)), 0)
