"""Where to cut a chain of layers: by count, by name, by measured cost.

A cut is the tuple of the groups' sizes: (2, 3) puts two layers into the first group and three into the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from .errors import CutError, did_you_mean

__all__ = ["Cut", "cut_at", "cut_by_cost", "cut_by_count"]

Cut = tuple[int, ...]
AVOIDED = 1e12
"""What a cut costs where there can be no predictor: more than all else, and less than where no cut is allowed."""


def cut_by_count(layers: int, stages: int, joined: Sequence[bool] = ()) -> Cut:
    """Cut into groups of as equal a number of layers as can be; the first ones take what is left over.

    Args:
        joined: Of each layer, whether there can be no cut before it.
    """
    _check_stages(layers, stages)
    if any(joined):
        return cut_by_cost([1.0] * layers, stages, joined=joined)
    size, left_over = divmod(layers, stages)
    return tuple(size + (stage < left_over) for stage in range(stages))


def cut_at(names: Sequence[str], starts: Sequence[str | int]) -> Cut:
    """Cut before each of the named (or numbered) layers."""
    positions = [_position(names, start) for start in starts]
    edges = [0, *positions, len(names)]
    if any(later <= earlier for earlier, later in pairwise(edges)):
        raise CutError(
            f"cut points {list(starts)} leave an empty group: each must come after the one before it, "
            f"and the first after layer {names[0]!r}"
        )
    return tuple(later - earlier for earlier, later in pairwise(edges))


def cut_by_cost(
    costs: Sequence[float],
    stages: int,
    predictors: Sequence[float] | None = None,
    joined: Sequence[bool] = (),
    again: Sequence[Sequence[float]] = (),
    learns: Sequence[bool] = (),
) -> Cut:
    """Cut so that the slowest group is as fast as it can be.

    Args:
        costs: What each layer costs in a step: forward, backward and optimizer.
        stages: The number of groups.
        predictors: What a predictor at each layer's output would cost; every group but the last pays one. Infinite
            where there can be none: there is no cut then if it can be helped.
        joined: Of each layer, whether there can be no cut before it.
        again: What each layer would cost more in the first group, in the second, and so on, but for the last: where
            the truth comes back, it is run once more.
        learns: Of each layer, whether it has weights to train: a group without any is made if it cannot be helped.
    """
    layers = len(costs)
    _check_stages(layers, stages)
    if stages > (apart := layers - sum(joined)):
        raise CutError(f"cannot cut {layers} layers into {stages} stages; some hang together, so use at most {apart}")
    predictors = [min(cost, AVOIDED) for cost in predictors or [0.0] * layers]
    alone = [0.0, *accumulate(costs)]
    besides = [[0.0, *accumulate(row)] for row in again] or [[0.0] * (layers + 1)] * (stages - 1)

    def group_cost(stage: int, start: int, end: int) -> float:
        own = alone[end] - alone[start]
        if learns and not any(learns[start:end]):
            own += AVOIDED
        if stage == stages:
            return own
        more = besides[stage - 1]
        return own + predictors[end - 1] + more[end] - more[start]

    # best[end]: the slowest group, then the sum of squares, of the best cut of the first `end` layers so far
    best = [(0.0, 0.0)] + [(math.inf, 0.0)] * layers
    starts: list[list[int]] = []
    for stage in range(1, stages + 1):
        row, chosen = [(math.inf, 0.0)] * (layers + 1), [0] * (layers + 1)
        for end in range(stage, layers - (stages - stage) + 1):
            if end < layers and joined and joined[end]:
                continue
            for start in range(stage - 1, end):
                cost, (slowest, squares) = group_cost(stage, start, end), best[start]
                candidate = (max(slowest, cost), squares + cost * cost)
                if candidate < row[end]:
                    row[end], chosen[end] = candidate, start
        best = row
        starts.append(chosen)
    return _walk_back(starts, layers)


def _walk_back(starts: list[list[int]], layers: int) -> Cut:
    sizes: list[int] = []
    end = layers
    for chosen in reversed(starts):
        sizes.append(end - chosen[end])
        end = chosen[end]
    return tuple(reversed(sizes))


def _position(names: Sequence[str], start: str | int) -> int:
    if isinstance(start, int):
        if not 0 < start < len(names):
            raise CutError(f"cut point {start} is outside 1..{len(names) - 1}, the places between {len(names)} layers")
        return start
    if start not in names:
        raise CutError(f"there is no layer {start!r} to cut before; {did_you_mean(start, names)}")
    return list(names).index(start)


def _check_stages(layers: int, stages: int) -> None:
    if stages < 1:
        raise CutError(f"cannot cut into {stages} stages; use at least 1")
    if stages > layers:
        raise CutError(f"cannot cut {layers} layers into {stages} stages; use at most {layers}")
