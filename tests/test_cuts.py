"""Where a chain is cut."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepahead.pipeline import CutError, cut_at, cut_by_cost, cut_by_count


@st.composite
def costs_and_stages(draw: st.DrawFn, most: int = 9) -> tuple[list[float], list[float], int]:
    costs = draw(st.lists(st.integers(0, 50), min_size=1, max_size=most))
    predictors = draw(st.lists(st.integers(0, 20), min_size=len(costs), max_size=len(costs)))
    return [*map(float, costs)], [*map(float, predictors)], draw(st.integers(1, len(costs)))


@given(st.integers(1, 200), st.data())
def test_by_count_is_even(layers: int, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, layers))
    cut = cut_by_count(layers, stages)
    assert sum(cut) == layers
    assert len(cut) == stages
    assert max(cut) - min(cut) <= 1
    assert min(cut) >= 1


@given(costs_and_stages(), st.data())
def test_by_cost_is_the_best_there_is(drawn: tuple[list[float], list[float], int], data: st.DataObject) -> None:
    """The slowest group is as fast as in the best of all cuts, tried one by one."""
    costs, predictors, stages = drawn
    row = st.lists(st.integers(0, 50), min_size=len(costs), max_size=len(costs))
    again = data.draw(st.lists(row, min_size=stages - 1, max_size=stages - 1))

    def slowest(edges: tuple[int, ...]) -> float:
        groups = list(pairwise(edges))
        more = [predictors[end - 1] + sum(row[start:end]) for (start, end), row in zip(groups[:-1], again, strict=True)]
        return max(sum(costs[start:end]) + besides for (start, end), besides in zip(groups, [*more, 0.0], strict=True))

    every_cut = combinations(range(1, len(costs)), stages - 1)
    best = min(slowest((0, *inner, len(costs))) for inner in every_cut)
    cut = cut_by_cost(costs, stages, predictors, again=again)
    assert len(cut) == stages
    assert min(cut) >= 1
    edges = tuple(sum(cut[:index]) for index in range(stages + 1))
    assert edges[-1] == len(costs)
    assert slowest(edges) == best


@given(st.integers(1, 40), st.data())
def test_by_cost_of_equal_layers_is_even(layers: int, data: st.DataObject) -> None:
    cut = cut_by_cost([1.0] * layers, data.draw(st.integers(1, layers)))
    assert max(cut) - min(cut) <= 1


def test_of_equally_slow_cuts_the_more_even_one() -> None:
    assert cut_by_cost([5, 1, 1, 1, 1], 3) == (1, 2, 2)
    assert cut_by_cost([1, 1, 1, 1, 5], 3) == (2, 2, 1)


def test_a_dear_predictor_moves_the_cut() -> None:
    assert cut_by_cost([4, 4, 4, 4], 2) == (2, 2)
    assert cut_by_cost([4, 4, 4, 4], 2, [9, 9, 0, 0]) == (3, 1)


def test_no_cut_where_no_predictor_can_be_unless_there_is_no_other() -> None:
    never = float("inf")
    assert cut_by_cost([1, 1, 1, 1], 2, [never, never, 0, never]) == (3, 1)
    assert sorted(cut_by_cost([1, 1, 1, 1], 2, [never] * 4)) in ([1, 3], [2, 2])


def test_no_group_has_nothing_to_train_unless_there_is_no_other() -> None:
    assert cut_by_cost([1, 9, 1], 3, learns=[True, False, True]) == (1, 1, 1)
    assert cut_by_cost([1, 9, 9, 1], 3, learns=[True, False, True, True]) in ((2, 1, 1), (1, 2, 1))
    assert cut_by_cost([1, 1, 1, 9], 2, learns=[True, True, True, False]) == (2, 2)


@given(st.lists(st.text(min_size=1), min_size=2, unique=True), st.data())
def test_at_names_and_numbers_agree(names: list[str], data: st.DataObject) -> None:
    inside = st.integers(1, len(names) - 1)
    positions = sorted(data.draw(st.sets(inside, min_size=1)))
    cut = cut_at(names, positions)
    assert cut == cut_at(names, [names[position] for position in positions])
    assert sum(cut) == len(names)
    assert [sum(cut[:index]) for index in range(1, len(cut))] == positions


@pytest.mark.parametrize(
    ("starts", "text"),
    [
        (["fc3"], "there is no layer 'fc3' to cut before; did you mean 'fc"),
        (["zzz"], "there is no layer 'zzz' to cut before; known are: conv, fc1, fc2"),
        ([3], r"cut point 3 is outside 1\.\.2, the places between 3 layers"),
        ([0], r"cut point 0 is outside 1\.\.2"),
        (["conv"], "leave an empty group"),
        (["fc2", "fc1"], "leave an empty group: each must come after the one before it"),
        ([1, "fc1"], "leave an empty group"),
    ],
)
def test_cut_points_that_cannot_be(starts: list[str | int], text: str) -> None:
    with pytest.raises(CutError, match=text):
        cut_at(["conv", "fc1", "fc2"], starts)


def test_more_stages_than_layers() -> None:
    with pytest.raises(CutError, match="cannot cut 3 layers into 4 stages; use at most 3"):
        cut_by_count(3, 4)
    with pytest.raises(CutError, match="cannot cut 3 layers into 4 stages; use at most 3"):
        cut_by_cost([1, 1, 1], 4)
    with pytest.raises(CutError, match="cannot cut into 0 stages"):
        cut_by_count(3, 0)
