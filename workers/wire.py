"""Messages as bytes: a header of two numbers and a small msgpack array, and behind it the tensors' values.

    sequence, step    8 bytes each
    form              [version, edge, kind, flag, [[dtype, [size, ..]], ..], label or nil]

The form is what messages of an edge have in common: it is packed and checked once, and then known by its bytes. The
type and the range of each field are checked before a byte of payload is looked at; what is not right is a `FrameError`.
Nothing is ever unpickled. `flag` is what the kind needs besides: training for an activation, truth for a gradient,
which mark for a mark.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
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

__all__ = [
    "HEADER_LIMIT",
    "Form",
    "Header",
    "bytes_of",
    "decode_header",
    "encode_header",
    "header_of",
    "load",
    "places_in",
    "store",
]

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
NUMBERS = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Form:
    """What a message is like: all but its number, its step and its values."""

    edge: str
    kind: type[Message]
    flag: int
    labelled: bool
    """Whether the last tensor is a label."""
    raw: bytes
    """The form as bytes."""
    places: tuple[tuple[int, int, TensorSpec], ...]
    """Where in the payload each tensor begins and ends."""
    payload_bytes: int


@dataclass(slots=True)
class Header:
    """A message without its values."""

    sequence: int
    step: int
    form: Form


def header_of(message: Message, sequence: int) -> Header:
    """Return the header of a message, after checking that all of it can travel."""
    if isinstance(message, Mark):
        form = _form_of(message.edge, Mark, MARKS.index(message.kind), (), None)
    elif isinstance(message, Gradient):
        form = _form_of(message.edge, Gradient, GRADIENTS.index(message.kind), _shapes(message), None)
    else:
        shapes, label = _shapes(message), None
        if message.label is not None:
            shapes, label = shapes[:-1], shapes[-1]
        form = _form_of(message.edge, Activation, int(message.training), shapes, label)
    return Header(sequence, message.step, form)


def encode_header(header: Header) -> bytes:
    """Return the header as bytes."""
    return NUMBERS.pack(header.sequence, header.step) + header.form.raw


def decode_header(raw: bytes) -> Header:
    """Return the header that the bytes say, or raise what is wrong with them."""
    if not NUMBERS.size < len(raw) <= HEADER_LIMIT:
        limits = f"{NUMBERS.size + 1} to {HEADER_LIMIT}"
        raise FrameError(f"a link frame lies: its header has {len(raw)} bytes, and {limits} are allowed")
    sequence, step = NUMBERS.unpack_from(raw)
    _count(sequence, "the sequence number", 0, MOST_COUNT)
    _count(step, "the step", 0, MOST_COUNT)
    return Header(sequence, step, _decode_form(raw[NUMBERS.size :]))


def store(message: Message, places: Sequence[Tensor]) -> None:
    """Write the values of a message to the places in its payload."""
    for value, place in zip(message.values, places, strict=True):
        place.copy_(value.detach() if value.requires_grad else value)


def load(header: Header, places: tuple[Tensor, ...], *, own: bool = True) -> Message:
    """Return the message of a header whose values are at these places: a copy of them, or if not `own` themselves."""
    form, step = header.form, header.step
    if form.kind is Mark:
        return Mark(edge=form.edge, step=step, kind=MARKS[form.flag])
    values = tuple([place.clone() for place in places]) if own else places
    if form.kind is Gradient:
        return Gradient(edge=form.edge, step=step, tensors=values, kind=GRADIENTS[form.flag])
    tensors, label = (values[:-1], values[-1]) if form.labelled else (values, None)
    return Activation(edge=form.edge, step=step, tensors=tensors, label=label, training=bool(form.flag))


def bytes_of(tensor: Tensor) -> bytes:
    """Return a tensor's values as they would lie in a payload."""
    plain = tensor.detach().cpu().contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.nbytes) if plain.nbytes else b""


def places_in(region: Tensor, form: Form) -> tuple[Tensor, ...]:
    """Return each tensor's place in a region of bytes."""
    return tuple(
        torch.empty(spec.shape, dtype=spec.dtype)
        if start == end
        else region[start:end].view(spec.dtype).view(spec.shape)
        for start, end, spec in form.places
    )


Shape = tuple[torch.dtype, tuple[int, ...]]


@lru_cache(maxsize=1024)
def _form_of(edge: str, kind: type[Message], flag: int, tensors: tuple[Shape, ...], label: Shape | None) -> Form:
    if len(tensors) > MOST_TENSORS:
        what = f"a message on edge {edge} has {len(tensors)} tensors"
        raise MessageError(f"{what}; a link carries at most {MOST_TENSORS}")
    specs = tuple(_travelling(edge, *shape) for shape in tensors)
    return _make_form(edge, kind, flag, specs, None if label is None else _travelling(edge, *label))


@lru_cache(maxsize=1024)
def _decode_form(raw: bytes) -> Form:
    version, edge, kind, flag, tensors, label = _array(_unpacked(raw), "the header", 6, 6)
    _count(version, "the version", VERSION, VERSION)
    if type(edge) is not str or not 0 < len(edge) <= 64:
        raise FrameError(f"a link frame lies: its edge is {edge!r:.80}, not a name of 1 to 64 letters")
    sort = KINDS[_count(kind, "the kind", 0, len(KINDS) - 1)]
    _count(flag, "the flag", 0, FLAGS[sort] - 1)
    specs = tuple(_spec(item) for item in _array(tensors, "the list of tensors", 0, MOST_TENSORS))
    if (sort is Mark) != (not specs) or (label is not None and sort is not Activation):
        raise FrameError(f"a link frame lies: {sort.__name__} with {len(specs) + (label is not None)} tensors")
    return _make_form(edge, sort, flag, specs, None if label is None else _spec(label))


def _make_form(
    edge: str, kind: type[Message], flag: int, tensors: tuple[TensorSpec, ...], label: TensorSpec | None
) -> Form:
    places: list[tuple[int, int, TensorSpec]] = []
    start = 0
    for spec in tensors if label is None else (*tensors, label):
        size = math.prod(spec.shape) * spec.dtype.itemsize
        places.append((start, start + size, spec))
        start += -(-size // ALIGNMENT) * ALIGNMENT
    packed = [_packed(spec) for spec in tensors]
    raw = pack((VERSION, edge, KINDS.index(kind), flag, packed, None if label is None else _packed(label)))
    return Form(edge, kind, flag, label is not None, raw, tuple(places), start)


def _travelling(edge: str, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
    spec = TensorSpec(dtype, tuple(shape))
    if dtype not in CODES:
        raise MessageError(f"a tensor {spec} cannot travel over edge {edge}; make it of a plain dtype")
    if len(shape) > MOST_DIMENSIONS:
        what = f"a tensor on edge {edge} has {len(shape)} dimensions"
        raise MessageError(f"{what}; a link carries at most {MOST_DIMENSIONS}")
    return spec


def _shapes(message: Activation | Gradient) -> tuple[Shape, ...]:
    """Return dtype and shape of all that travels, after checking that it has values, one behind the other."""
    for tensor in message.values:
        if tensor.layout is not torch.strided or tensor.is_meta:
            spec = TensorSpec.of(tensor)
            what = "a tensor without values" if tensor.is_meta else f"a tensor {spec} of layout {tensor.layout}"
            raise MessageError(f"{what} cannot travel over edge {message.edge}; make it dense")
    return tuple([(tensor.dtype, tensor.shape) for tensor in message.values])


def _packed(spec: TensorSpec) -> tuple[int, tuple[int, ...]]:
    return CODES[spec.dtype], spec.shape


def _unpacked(raw: bytes) -> Any:
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
