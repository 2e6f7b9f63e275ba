"""Messages as bytes: a small msgpack header, and behind it the tensors' values.

A header is an array of fixed length. The type and the range of each field are checked before a byte of payload is
looked at; what is not of this form is a `FrameError`. Nothing is ever unpickled.

    [version, edge, sequence, kind, step, flag, [[dtype, [size, ..]], ..], label or nil]

`flag` is what the kind needs besides: training for an activation, truth for a gradient, which mark for a mark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepahead.pipeline import (
    Activation,
    FrameError,
    Gradient,
    GradientKind,
    Mark,
    MarkKind,
    Message,
    MessageError,
    TensorSpec,
)

from .packing import pack, unpack

__all__ = ["HEADER_LIMIT", "Header", "decode_header", "encode_header", "header_of", "load", "store"]

VERSION = 1
HEADER_LIMIT = 4096
"""Bytes that a header may have: a hostile megabyte of msgpack unfolds to a hundred of objects."""
ALIGNMENT = 64
MOST_TENSORS, MOST_DIMENSIONS, MOST_VALUES, MOST_COUNT = 16, 16, 2**40, 2**62

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
)
CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
KINDS: tuple[type[Message], ...] = (Activation, Gradient, Mark)
GRADIENTS = (GradientKind.TARGET, GradientKind.TRUTH)
MARKS = (MarkKind.EVALUATE, MarkKind.SNAPSHOT, MarkKind.STOP)
FLAGS = {Activation: 2, Gradient: len(GRADIENTS), Mark: len(MARKS)}
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Header:
    """A message without its values."""

    edge: str
    sequence: int
    kind: type[Message]
    step: int
    flag: int
    tensors: tuple[TensorSpec, ...] = ()
    label: TensorSpec | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Of all that the payload holds, in its order."""
        return self.tensors if self.label is None else (*self.tensors, self.label)

    @property
    def payload_bytes(self) -> int:
        return sum(_aligned(_bytes_of(spec)) for spec in self.specs)


def header_of(message: Message, sequence: int) -> Header:
    """Return the header of a message, after checking that all of it can travel."""
    edge, step = message.edge, message.step
    if isinstance(message, Mark):
        return Header(edge, sequence, Mark, step, MARKS.index(message.kind))
    tensors = tuple(_spec_of(tensor, edge) for tensor in message.tensors)
    if isinstance(message, Gradient):
        return Header(edge, sequence, Gradient, step, GRADIENTS.index(message.kind), tensors)
    label = None if message.label is None else _spec_of(message.label, edge)
    return Header(edge, sequence, Activation, step, int(message.training), tensors, label)


def encode_header(header: Header) -> bytes:
    """Return the header as bytes."""
    label = None if header.label is None else _packed(header.label)
    tensors = [_packed(spec) for spec in header.tensors]
    kind = KINDS.index(header.kind)
    fields = (VERSION, header.edge, header.sequence, kind, header.step, header.flag, tensors, label)
    raw = pack(fields)
    if len(raw) > HEADER_LIMIT:
        raise MessageError(f"the header of a message on edge {header.edge} has {len(raw)} bytes of {HEADER_LIMIT}")
    return raw


def decode_header(raw: bytes) -> Header:
    """Return the header that the bytes say, or raise what is wrong with them."""
    version, edge, sequence, kind, step, flag, tensors, label = _array(_unpacked(raw), "the header", 8, 8)
    _count(version, "the version", VERSION, VERSION)
    if type(edge) is not str or not 0 < len(edge) <= 64:
        raise FrameError(f"a link frame lies: its edge is a {type(edge).__name__}, not a name of 1 to 64 letters")
    _count(kind, "the kind", 0, len(KINDS) - 1)
    header = Header(
        edge=edge,
        sequence=_count(sequence, "the sequence number", 0, MOST_COUNT),
        kind=KINDS[kind],
        step=_count(step, "the step", 0, MOST_COUNT),
        flag=_count(flag, "the flag", 0, FLAGS[KINDS[kind]] - 1),
        tensors=tuple(_spec(item) for item in _array(tensors, "the list of tensors", 0, MOST_TENSORS)),
        label=None if label is None else _spec(label),
    )
    if (header.kind is Mark) != (not header.tensors) or (label is not None and header.kind is not Activation):
        raise FrameError(f"a link frame lies: a {header.kind.__name__} with {len(header.specs)} tensors")
    return header


def store(message: Message, header: Header, region: Tensor) -> None:
    """Write the values of a message into a region of bytes."""
    if isinstance(message, Mark):
        return
    sources = message.tensors
    if isinstance(message, Activation) and message.label is not None:
        sources = (*sources, message.label)
    for source, target in zip(sources, _places(header, region), strict=True):
        target.copy_(source.detach())


def load(header: Header, region: Tensor) -> Message:
    """Return the message that a header and a region of bytes make, with values of its own."""
    if header.kind is Mark:
        return Mark(edge=header.edge, step=header.step, kind=MARKS[header.flag])
    values = tuple(place.clone() for place in _places(header, region))
    tensors = values[: len(header.tensors)]
    if header.kind is Gradient:
        return Gradient(edge=header.edge, step=header.step, tensors=tensors, kind=GRADIENTS[header.flag])
    label = None if header.label is None else values[-1]
    return Activation(edge=header.edge, step=header.step, tensors=tensors, label=label, training=bool(header.flag))


def _places(header: Header, region: Tensor) -> Iterator[Tensor]:
    """Yield each tensor's place in the region."""
    start = 0
    for spec in header.specs:
        size = _bytes_of(spec)
        if size == 0:
            yield torch.empty(spec.shape, dtype=spec.dtype)
        else:
            yield region[start : start + size].view(spec.dtype).view(spec.shape)
        start += _aligned(size)


def _spec_of(tensor: Tensor, edge: str) -> TensorSpec:
    spec = TensorSpec.of(tensor)
    if spec.dtype not in CODES or tensor.layout is not torch.strided or tensor.is_meta:
        layout = "" if tensor.layout is torch.strided else f" of layout {tensor.layout}"
        raise MessageError(f"a tensor {spec}{layout} cannot travel over edge {edge}; make it dense, of a plain dtype")
    return spec


def _bytes_of(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * spec.dtype.itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _packed(spec: TensorSpec) -> tuple[int, tuple[int, ...]]:
    return CODES[spec.dtype], spec.shape


def _unpacked(raw: bytes) -> Any:
    if len(raw) > HEADER_LIMIT:
        raise FrameError(f"a link frame lies: its header has {len(raw)} bytes, at most {HEADER_LIMIT} are allowed")
    try:
        return unpack(raw, max_map_len=0, max_ext_len=0, max_bin_len=0, max_array_len=MOST_TENSORS)
    except Exception as error:  # msgpack raises a dozen types for what is not msgpack
        raise FrameError(f"a link frame lies: its header is not msgpack ({type(error).__name__}: {error})") from None


def _spec(packed: Any) -> TensorSpec:
    code, sizes = _array(packed, "a tensor", 2, 2)
    dtype = DTYPES[_count(code, "a dtype", 0, len(DTYPES) - 1)]
    shape = tuple(_count(size, "a size", 0, MOST_VALUES) for size in _array(sizes, "a shape", 0, MOST_DIMENSIONS))
    _count(math.prod(shape), "the number of values", 0, MOST_VALUES)
    return TensorSpec(dtype, shape)


def _array(value: Any, what: str, least: int, most: int) -> list[Any]:
    if type(value) is not list or not least <= len(value) <= most:
        got = f"an array of {len(value)}" if type(value) is list else f"a {type(value).__name__}"
        raise FrameError(f"a link frame lies: {what} is {got}, not an array of {least} to {most}")
    return value


def _count(value: Any, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        got = str(value) if type(value) is int else f"a {type(value).__name__}"
        raise FrameError(f"a link frame lies: {what} is {got}, not a number from {least} to {most}")
    return value
