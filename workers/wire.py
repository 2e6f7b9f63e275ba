"""Messages as bytes: a header of two numbers and a form, a small msgpack array, and behind it the tensors' values.

    sequence, step    as whoever carries them likes
    form              [version, edge, kind, flag, [[dtype, [size, ..]], ..], label or nil]

The form is what messages of an edge have in common: it is packed and checked once, and then known by its bytes. The
type and the range of each field are checked before a byte of payload is looked at; what is not right is a `FrameError`.
Nothing is ever unpickled. `flag` is what the kind needs besides: training for an activation, truth for a gradient,
which mark for a mark.

Workers come here a few times a step, when training has swept the caches: each function, class and object that is not
touched is some microseconds saved.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
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

__all__ = [
    "FORM_LIMIT",
    "HEADER_LIMIT",
    "MOST_PARTS",
    "Form",
    "Header",
    "Raw",
    "bytes_of",
    "check_sizes",
    "header_from",
    "header_in",
    "header_of",
    "load",
    "memory_of",
    "pack_header",
    "places_in",
    "plain_of",
    "store",
    "tensor_of",
]

VERSION = 1
FORM_LIMIT = 4096
"""Bytes that a form may have: a hostile megabyte of msgpack unfolds to a hundred of objects."""
HEADER_LIMIT = FORM_LIMIT + 64
ALIGNMENT = 64
MOST_TENSORS, MOST_DIMENSIONS, MOST_VALUES, MOST_COUNT = 16, 16, 2**40, 2**62
MOST_PARTS = MOST_TENSORS + 1
"""Tensors, and a label."""
MOST_FORMS = 1024
STRIDED = torch.strided
CPU = torch.device("cpu")

Raw = memoryview | Tensor
"""Values as bytes: a tensor of bytes that is nobody else's, or any of the processor's memory, to be copied from."""

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
GRADIENTS = (GradientKind.TARGET, GradientKind.TRUTH, GradientKind.NONE)
MARKS = (MarkKind.EVALUATE, MarkKind.SNAPSHOT, MarkKind.SETTLE, MarkKind.STOP)
FLAGS = {Activation: 2, Gradient: len(GRADIENTS), Mark: len(MARKS)}


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What a message is like: all but its number, its step and its values; an end of a link makes each kind once."""

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
    key: Key
    if isinstance(message, Activation):
        key = message.edge, Activation, int(message.training), _shapes(message), message.label is not None
    elif isinstance(message, Gradient):
        key = message.edge, Gradient, GRADIENTS.index(message.kind), _shapes(message), False
    else:
        key = message.edge, Mark, MARKS.index(message.kind), (), False
    return Header(sequence, message.step, _sent[key])


def header_from(sequence: int, step: int, raw: bytes) -> Header:
    """Return the header that these are, its form as bytes, or raise what is wrong with them."""
    if sequence > MOST_COUNT or step > MOST_COUNT:
        which, value = ("number", sequence) if sequence > MOST_COUNT else ("step", step)
        raise FrameError(f"a link frame lies: its {which} is {value}, at most {MOST_COUNT} are allowed")
    return Header(sequence, step, _received[raw])


def pack_header(header: Header) -> bytes:
    """Return a header as bytes by itself: a msgpack array of number, step and form."""
    return pack((header.sequence, header.step, header.form.raw))


def header_in(raw: bytes) -> Header:
    """Return the header that these bytes are, or raise what is wrong with them."""
    if len(raw) > HEADER_LIMIT:
        raise FrameError(f"a link frame lies: its header has {len(raw)} bytes, at most {HEADER_LIMIT} are allowed")
    try:
        parts: Any = unpack(raw, max_array_len=3, max_map_len=0, max_ext_len=0, max_str_len=0)
    except Exception as error:  # msgpack raises a dozen types for what is not msgpack
        raise FrameError(f"a link frame lies: its header is not msgpack ({type(error).__name__})") from None
    if type(parts) is not list or [type(part) for part in parts] != [int, int, bytes] or min(parts[:2]) < 0:
        raise FrameError("a link frame lies: its header is not a number, a step and a form")
    return header_from(*parts)


def check_sizes(header: Header, sizes: Sequence[int]) -> None:
    """Refuse values that have other numbers of bytes than the header says."""
    due = [end - start for start, end, _ in header.form.places]
    if list(sizes) != due:
        edge = header.form.edge
        raise FrameError(f"a link frame lies: on edge {edge} it has parts of {list(sizes)} bytes, and says {due}")


def store(message: Message, places: Sequence[Tensor]) -> None:
    """Write the values of a message to the places in its payload."""
    for value, place in zip(message.values, places, strict=True):
        place.copy_(value.detach() if value.requires_grad else value)


def load(header: Header, places: tuple[Tensor, ...], own: torch.device | None = CPU) -> Message:
    """Return the message of a header whose values are at these places: copied to a device, or else themselves."""
    form, step = header.form, header.step
    if form.kind is Mark:
        return Mark(edge=form.edge, step=step, kind=MARKS[form.flag])
    values = places if own is None else tuple([place.to(own, copy=True) for place in places])
    if form.kind is Gradient:
        return Gradient(edge=form.edge, step=step, tensors=values, kind=GRADIENTS[form.flag])
    tensors, label = (values[:-1], values[-1]) if form.labelled else (values, None)
    return Activation(edge=form.edge, step=step, tensors=tensors, label=label, training=bool(form.flag))


def plain_of(tensor: Tensor, device: torch.device = CPU) -> Tensor:
    """Return a tensor with the same values, which lie one behind the other in a device's memory."""
    plain = tensor.detach() if tensor.requires_grad else tensor  # after a sleep a call of torch takes 10 us
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    return (plain if plain.device == device else plain.to(device)).contiguous()


def memory_of(plain: Tensor) -> Any:
    """Return the values of a plain tensor in the processor's memory, where they are, as bytes."""
    return (ctypes.c_char * plain.nbytes).from_address(plain.data_ptr()) if plain.nbytes else b""


def bytes_of(values: Raw) -> bytes:
    """Return values as bytes, as they would lie in a payload."""
    if isinstance(values, memoryview):
        return bytes(values)
    plain = plain_of(values)
    return bytes(memory_of(plain))


def tensor_of(raw: Raw, spec: TensorSpec) -> Tensor:
    """Return the tensor that these bytes are: where they lie if they are a tensor, and not empty; else a copy."""
    if isinstance(raw, Tensor) and len(raw):
        return raw.view(spec.dtype).view(spec.shape)
    made = torch.empty(spec.shape, dtype=spec.dtype, device=raw.device if isinstance(raw, Tensor) else CPU)
    if len(raw):
        memory_of(made).raw = raw
    return made


def places_in(region: Tensor, form: Form) -> tuple[Tensor, ...]:
    """Return each tensor's place in a region of bytes."""
    return tuple(
        torch.empty(spec.shape, dtype=spec.dtype)
        if start == end
        else region[start:end].view(spec.dtype).view(spec.shape)
        for start, end, spec in form.places
    )


Shape = tuple[torch.dtype, tuple[int, ...]]
Key = tuple[str, type[Message], int, tuple[Shape, ...], bool]
"""Edge, kind, flag, shapes, and whether the last of them is a label's."""


class _Forms(dict[Any, Form]):
    """Forms by what they were made from; when there are too many, they are all made again."""

    def __init__(self, make: Callable[[Any], Form]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: Any) -> Form:
        form = self._make(key)
        if len(self) >= MOST_FORMS:
            self.clear()
        self[key] = form
        return form


def _form_of(key: Key) -> Form:
    edge, kind, flag, shapes, labelled = key
    if len(shapes) - labelled > MOST_TENSORS:
        what = f"a message on edge {edge} has {len(shapes) - labelled} tensors"
        raise MessageError(f"{what}; a link carries at most {MOST_TENSORS}")
    return _make_form(edge, kind, flag, [_travelling(edge, *shape) for shape in shapes], labelled)


def _decode_form(raw: bytes) -> Form:
    if len(raw) > FORM_LIMIT:
        raise FrameError(f"a link frame lies: its form has {len(raw)} bytes, at most {FORM_LIMIT} are allowed")
    version, edge, kind, flag, tensors, label = _array(_unpacked(raw), "the form", 6, 6)
    _count(version, "the version", VERSION, VERSION)
    if type(edge) is not str or not 0 < len(edge) <= 64:
        raise FrameError(f"a link frame lies: its edge is {edge!r:.80}, not a name of 1 to 64 letters")
    sort = KINDS[_count(kind, "the kind", 0, len(KINDS) - 1)]
    _count(flag, "the flag", 0, FLAGS[sort] - 1)
    specs = [_spec(item) for item in _array(tensors, "the list of tensors", 0, MOST_TENSORS)]
    if (sort is Mark) != (not specs) or (label is not None and sort is not Activation):
        raise FrameError(f"a link frame lies: {sort.__name__} with {len(specs) + (label is not None)} tensors")
    return _make_form(edge, sort, flag, specs if label is None else [*specs, _spec(label)], label is not None)


_sent, _received = _Forms(_form_of), _Forms(_decode_form)


def _make_form(edge: str, kind: type[Message], flag: int, specs: list[TensorSpec], labelled: bool) -> Form:
    """Return the form of messages with these tensors, of which the last may be a label."""
    places: list[tuple[int, int, TensorSpec]] = []
    start = 0
    for spec in specs:
        size = math.prod(spec.shape) * spec.dtype.itemsize
        places.append((start, start + size, spec))
        start += -(-size // ALIGNMENT) * ALIGNMENT
    packed = [_packed(spec) for spec in specs]
    label = packed.pop() if labelled else None
    raw = pack((VERSION, edge, KINDS.index(kind), flag, packed, label))
    return Form(edge, kind, flag, labelled, raw, tuple(places), start)


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
    shapes: list[Shape] = []
    for tensor in message.values:
        if tensor.layout is not STRIDED or tensor.is_meta:
            what = "without values" if tensor.is_meta else f"{TensorSpec.of(tensor)} of layout {tensor.layout}"
            raise MessageError(f"a tensor {what} cannot travel over edge {message.edge}; make it dense")
        shapes.append((tensor.dtype, tensor.shape))
    return tuple(shapes)


def _packed(spec: TensorSpec) -> tuple[int, tuple[int, ...]]:
    return CODES[spec.dtype], spec.shape


def _unpacked(raw: bytes) -> Any:
    try:
        return unpack(raw, max_map_len=0, max_ext_len=0, max_bin_len=0, max_array_len=MOST_TENSORS)
    except Exception as error:  # msgpack raises a dozen types for what is not msgpack
        raise FrameError(f"a link frame lies: its form is not msgpack ({type(error).__name__}: {error})") from None


def _spec(packed: Any) -> TensorSpec:
    code, sizes = _array(packed, "a tensor", 2, 2)
    dtype = DTYPES[_count(code, "a dtype", 0, len(DTYPES) - 1)]
    shape = tuple(_count(size, "a size", 0, MOST_VALUES) for size in _array(sizes, "a shape", 0, MOST_DIMENSIONS))
    _count(math.prod(size or 1 for size in shape), "the number of values", 0, MOST_VALUES)  # as torch does
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
