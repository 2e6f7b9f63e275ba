"""Draws keyed by where they happen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepahead.pipeline import keyed, seed_for


def draw(*path: int | str) -> list[float]:
    with keyed(*path):  # type: ignore[arg-type]
        values: list[float] = torch.rand(3).tolist()
    return values


def test_a_place_always_draws_the_same() -> None:
    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert draw(1, 2, 3) != draw(1, 2, 4)
    assert draw(1, 2, 3) != draw(1, 3, 2)
    assert draw(1, 2, 3) != draw(1, 23)


def test_the_stream_outside_does_not_notice() -> None:
    torch.manual_seed(4)
    expected = torch.rand(4).tolist()
    torch.manual_seed(4)
    first = torch.rand(2).tolist()
    with pytest.raises(RuntimeError, match="must match"), keyed(0, 1):
        torch.rand(3).add(torch.rand(4))
    assert first + torch.rand(2).tolist() == expected


@given(st.integers(0, 2**63), st.integers(0, 100), st.integers(0, 10**9))
def test_seeds_suit_torch(seed: int, stage: int, step: int) -> None:
    value = seed_for(seed, stage, step)
    assert 0 <= value < 2**63
    torch.Generator().manual_seed(value)
