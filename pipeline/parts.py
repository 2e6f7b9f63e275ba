"""Parts of a step, which whoever drives a stage can time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

__all__ = ["TAX", "USEFUL", "Part", "Span", "no_span"]

Part = Literal["forward", "predict", "backward", "optimizer", "learn", "replay"]
Span = Callable[[Part], AbstractContextManager[None]]
"""Wraps the parts of a step, so that whoever drives the stage can time them; on a GPU what is inside is only queued."""
USEFUL: tuple[Part, ...] = ("forward", "backward", "optimizer")
"""The parts of a step that plain backprop has too."""
TAX: tuple[Part, ...] = ("predict", "learn", "replay")
"""The parts that are the price of not waiting."""
_NOTHING = nullcontext()


def no_span(part: Part) -> AbstractContextManager[None]:
    """Time nothing."""
    return _NOTHING
