"""Every random draw keyed by where it happens: (seed, stage, step).

A draw then depends on nothing that was drawn before it. That is what makes a replay see the dropout mask
of the first pass, a restarted stage go on as if nothing had happened, and many processes equal one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import torch

from .devices import default_generators

__all__ = ["keyed", "seed_for"]

CPU = torch.device("cpu")


def seed_for(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed for one place of one run, for example `seed_for(seed, stage, step)`."""
    text = "/".join(str(part) for part in (seed, *path))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def keyed(seed: int, *path: int | str, device: torch.device = CPU) -> Generator[None]:
    """Draw from the stream of one place; the streams outside are afterwards as if nothing had been drawn."""
    generators = default_generators(device)
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed_for(seed, *path))
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
