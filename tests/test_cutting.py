"""How a run's layers are cut when cost decides: a stage that has more to do has fewer of them."""

from __future__ import annotations

from typing import Any

import pytest
from nets import CLASSES, rows
from test_processes import job_of
from torch import nn

from stepahead.launch import Config
from stepahead.launch.plan import make_plan
from stepahead.pipeline import Cut, LayerCost, StageTruth, Truth, UsageError

LAYERS = 8


def cost(signal: float = 0.0) -> LayerCost:
    return LayerCost(name="", forward=1.0, backward=2.0, optimizer=0.0, signal=signal, output_bytes=0)


def cut(signal: float = 0.0, periods: list[int] | None = None, **settings: Any) -> Cut:
    """Return how eight equal layers are cut, into two stages unless said."""
    truth = {"truth": Truth(use="true-up", every=periods)} if periods else {}
    model = nn.Sequential(*[nn.Linear(12, 12) for _ in range(LAYERS - 1)], nn.Linear(12, CLASSES))
    job = job_of(model, rows(3), **truth)
    chosen: dict[str, Any] = {"stages": 2, "device": "cpu", "cut": "cost", **settings}
    config = Config(**chosen)
    return make_plan(config, job, costs=[cost(signal)] * LAYERS).cut


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"truth": "off"}, (4, 4)),
        ({"truth": "true-up", "truth_every": 8}, (4, 4)),  # 3.375 a layer: 13.5 beside 12
        ({"truth": "true-up", "truth_every": 2}, (3, 5)),  # 4.5: 13.5 beside 15
        ({"truth": "true-up", "truth_every": 1}, (2, 6)),  # 6: 12 beside 18
        ({"truth": "replay"}, (3, 5)),  # 4: 12 beside 15
        ({"truth": "stash"}, (4, 4)),
        ({"schedule": "lockstep"}, (4, 4)),
        ({"schedule": "interleaved-1f1b"}, (2, 2, 2, 2)),
    ],
)
def test_what_a_stage_does_with_the_truth_counts(settings: dict[str, Any], expected: Cut) -> None:
    assert cut(**settings) == expected


def test_a_predictor_counts_where_there_is_one() -> None:
    assert cut(signal=8.0, truth="off") == (3, 5)  # 17 beside 15
    assert cut(signal=8.0, schedule="lockstep") == (4, 4)
    assert cut(signal=8.0, truth="stash") == (4, 4)


def test_stages_with_truths_of_their_own_periods() -> None:
    """The second and the third do all of each batch twice, the first of each fourth."""
    assert cut(stages=4, periods=[4, 1, 1]) == (3, 1, 1, 3)
    assert cut(stages=4, truth="off") == (2, 2, 2, 2)


def test_what_a_layer_costs_once_more() -> None:
    assert cost().again(StageTruth()) == 0
    assert cost().again(StageTruth("true-up", every=2)) == 1.5
    assert cost().again(StageTruth("true-up", every=2, keep="graph")) == 1.0
    assert cost().again(StageTruth("true-up", every=2, above=2, relay="again")) == 2.0
    assert cost().again(StageTruth("learn", every=2)) == 0
    assert cost().again(StageTruth("learn", every=4, above=2)) == 1.0
    assert cost().again(StageTruth("stash", every=1)) == 0


def test_virtual_stages_are_not_cut_by_cost() -> None:
    job = job_of(nn.Sequential(nn.Linear(12, 12), nn.Linear(12, CLASSES)), rows(3))
    with pytest.raises(UsageError, match="virtual stages last as long whatever they hold; cut by count or by name"):
        make_plan(Config(stages=2, device="virtual", stage_ms=20.0, cut="cost"), job)


def test_a_wrong_number_of_periods_is_refused() -> None:
    with pytest.raises(UsageError, match="the truth has 2 periods, and 1 stages use it"):
        cut(periods=[1, 1])
