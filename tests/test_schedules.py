"""The order of actions, beside a drawn timeline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepahead.pipeline import exact_lag, free_lag, schedule

LETTERS = {"forward": "F", "learn": "L"}


def drawn(waits: list[bool], lags: list[int], steps: int) -> list[str]:
    """One line for each stage, one word for each of its actions."""
    lines: list[list[str]] = [[] for _ in waits]
    for actions in schedule(waits, exact_lag(lags), range(steps)):
        for what, stage, step in actions:
            lines[stage].append(f"{LETTERS[what]}{step}")
    return [" ".join(line) for line in lines]


def test_decoupled() -> None:
    assert drawn([False] * 3, [2, 2, 2], 4) == [
        "F0 F1 L0 F2 L1 F3 L2 L3",
        "F0 F1 L0 F2 L1 F3 L2 L3",
        "F0 F1 F2 F3",
    ]


def test_a_lag_for_each_stage() -> None:
    assert drawn([False] * 3, [4, 1, 1], 5) == [
        "F0 F1 F2 F3 L0 F4 L1 L2 L3 L4",
        "F0 L0 F1 L1 F2 L2 F3 L3 F4 L4",
        "F0 F1 F2 F3 F4",
    ]


def test_locked() -> None:
    actions = list(schedule([True, True, False], exact_lag([9, 9]), range(2)))
    assert actions == [
        [("forward", 0, s), ("forward", 1, s), ("forward", 2, s), ("learn", 1, s), ("learn", 0, s)] for s in range(2)
    ] + [[]]


def test_a_locked_stage_among_others() -> None:
    assert drawn([False, True, False], [2, 2, 2], 3) == ["F0 F1 L0 F2 L1 L2", "F0 L0 F1 L1 F2 L2", "F0 F1 F2"]


@given(st.integers(2, 5), st.integers(1, 9), st.integers(0, 30), st.integers(0, 99))
def test_free_lags_keep_their_bound_and_their_order(stages: int, most: int, steps: int, seed: int) -> None:
    seen: dict[int, list[int]] = {stage: [] for stage in range(stages)}
    for step, actions in enumerate(schedule([False] * stages, free_lag([most] * stages, seed), range(steps))):
        for what, stage, of in actions:
            if what == "learn":
                seen[stage].append(of)
                assert 1 <= step - of <= most
    assert all(seen[stage] == list(range(steps)) for stage in range(stages - 1))
    assert seen[stages - 1] == []


def test_free_lags_differ() -> None:
    due = free_lag([6, 6], seed=1)
    lags = {due(0, step) - step for step in range(200)}
    assert len(lags) > 3
    assert due(0, 50) == free_lag([6, 6], seed=1)(0, 50)
    assert [due(0, step) for step in range(50)] != [free_lag([6, 6], seed=2)(0, step) for step in range(50)]


@pytest.mark.parametrize("stages", [1, 2])
def test_no_steps(stages: int) -> None:
    assert list(schedule([False] * stages, exact_lag([2] * stages), [])) == [[]]
