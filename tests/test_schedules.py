"""The order of actions, beside a drawn timeline."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepahead.pipeline import exact_lag, free_lag, relayed_lag, schedule

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
        "F0 F1 L0 F2 L1 F3 L2",
        "F0 F1 L0 F2 L1 F3 L2",
        "F0 F1 F2 F3",
    ]


def test_a_lag_for_each_stage() -> None:
    assert drawn([False] * 3, [4, 1, 1], 5) == [
        "F0 F1 F2 F3 L0 F4 L1",
        "F0 L0 F1 L1 F2 L2 F3 L3 F4 L4",
        "F0 F1 F2 F3 F4",
    ]


def test_locked() -> None:
    actions = list(schedule([True, True, False], exact_lag([9, 9]), range(2)))
    assert actions == [
        [("forward", 0, s), ("forward", 1, s), ("forward", 2, s), ("learn", 1, s), ("learn", 0, s)] for s in range(2)
    ]


def test_a_locked_stage_among_others() -> None:
    assert drawn([False, True, False], [2, 2, 2], 3) == ["F0 F1 L0 F2 L1", "F0 L0 F1 L1 F2 L2", "F0 F1 F2"]


@given(st.integers(2, 5), st.integers(1, 9), st.integers(0, 30), st.integers(0, 99))
def test_free_lags_keep_their_bound_and_their_order(stages: int, most: int, steps: int, seed: int) -> None:
    seen: dict[int, list[int]] = {stage: [] for stage in range(stages)}
    for step, actions in enumerate(schedule([False] * stages, free_lag([most] * stages, seed), range(steps))):
        for what, stage, of in actions:
            if what == "learn":
                seen[stage].append(of)
                assert 1 <= step + 1 - of <= most
    assert all(learnt == list(range(len(learnt))) for learnt in seen.values())
    assert all(len(seen[stage]) >= steps - most for stage in range(stages - 1))
    assert seen[stages - 1] == []


def test_truths_take_two_steps_more_for_each_stage_that_passes_them_on() -> None:
    assert [relayed_lag(2, stage, 4) for stage in range(3)] == [6, 4, 2]
    due = exact_lag([2, 2, 2], [6, 4, 2], lambda stage, step: step % 3 == 0)
    rounds = list(schedule([False] * 4, due, range(8)))
    assert [step for _, stage, step in rounds[4] if stage == 0] == [4]  # 3 has a truth, which takes longer
    assert [step for _, stage, step in rounds[5] if stage == 0] == [5, 0, 4]  # the earlier of two comes first


@given(st.integers(2, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 2), st.integers(0, 99))
def test_a_truth_is_never_used_before_the_stage_below_has_passed_it_on(
    stages: int, most: int, base: int, growth: int, seed: int
) -> None:
    every = base * growth ** (stages - 2)  # of the first stage; those below have it more often
    due = free_lag([most] * stages, seed, lambda stage, step: step % (every // growth**stage) == 0)
    for step in range(0, 10 * every, every):
        lags = [due(stage, step) - step for stage in range(stages - 1)]
        assert all(above > below for above, below in pairwise(lags))
        assert all(due(stage, step) <= due(stage, step + every) for stage in range(stages - 1))


def test_free_lags_differ() -> None:
    due = free_lag([6, 6], seed=1)
    lags = {due(0, step) - step for step in range(200)}
    assert len(lags) > 3
    assert due(0, 50) == free_lag([6, 6], seed=1)(0, 50)
    assert [due(0, step) for step in range(50)] != [free_lag([6, 6], seed=2)(0, step) for step in range(50)]


@pytest.mark.parametrize("stages", [1, 2])
def test_no_steps(stages: int) -> None:
    assert list(schedule([False] * stages, exact_lag([2] * stages), [])) == []
