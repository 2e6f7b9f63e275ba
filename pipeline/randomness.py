"""Every random draw keyed by where it happens: (seed, stage, step).

A draw then depends on nothing that was drawn before it. That is what makes a replay see the dropout mask
of the first pass, a restarted stage go on as if nothing had happened, and many processes equal one.
"""

from __future__ import annotations

import zlib

import torch

from .devices import default_generators

__all__ = ["keyed", "seed_for"]

CPU = torch.device("cpu")
WORD = 2**64 - 1


def seed_for(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed for one place of one run, for example `seed_for(seed, stage, step)`.

    Arithmetic, not a cryptographic hash: it runs in every step of every stage.
    """
    state = _mixed(seed)
    for part in path:
        state = _mixed(state ^ (zlib.crc32(part.encode()) if isinstance(part, str) else part))
    return state >> 1


class keyed:  # named as a function, for it is used like one: `with keyed(seed, stage, step):`
    """Draw from the stream of one place; the streams outside are afterwards as if nothing had been drawn."""

    __slots__ = ("_generators", "_seed", "_states")

    def __init__(self, seed: int, *path: int | str, device: torch.device = CPU) -> None:
        self._seed = seed_for(seed, *path)
        self._generators = default_generators(device)

    def __enter__(self) -> None:
        self._states: list[torch.Tensor] = []
        for generator in self._generators:
            self._states.append(generator.get_state())
            generator.manual_seed(self._seed)

    def __exit__(self, *error: object) -> None:
        for generator, state in zip(self._generators, self._states, strict=False):
            generator.set_state(state)


def _mixed(word: int) -> int:
    """Return the word after one round of splitmix64: every bit of it sways every bit of the result."""
    word = (word + 0x9E3779B97F4A7C15) & WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)
