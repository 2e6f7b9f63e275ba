"""msgpack, annotated: the only place that knows it."""

from __future__ import annotations

from typing import Any

import msgpack  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["pack", "unpack"]


def pack(value: object) -> bytes:
    """Return the value as bytes."""
    return bytes(msgpack.packb(value))  # pyright: ignore[reportArgumentType]  # None only for a packer of one's own


def unpack(raw: bytes, **limits: int) -> Any:
    """Return the value that the bytes are; `limits` are msgpack's on the sizes of what is in it."""
    return msgpack.unpackb(raw, **limits)
