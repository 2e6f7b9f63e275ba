"""Virtual devices: parts of a step last as long as they are to, whatever the schedule; ways between stages are slow."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import CLASSES, adam, mlp, rows
from test_channels import batch, gradient, in_shared_memory
from test_processes import job_of, train
from torch import Tensor

from stepahead.launch import Config
from stepahead.launch.plan import make_plan
from stepahead.launch.virtual import parse_slow_stages
from stepahead.pipeline import USEFUL, Part, PeerEndedError, Synthetic, UsageError, owner_of, synthetic
from stepahead.workers import Pace, Spans, Telemetry
from stepahead.workers.delays import Delay, DelayedReceiver, DueTimes
from stepahead.workers.locked import is_available
from stepahead.workers.virtual import Paced

of_torch = pytest.mark.skipif(not is_available(), reason="torch's schedules need 2.13")
cheap = synthetic("linear", classes=CLASSES, optimizer=adam, every=4)


def virtual(**settings: Any) -> dict[str, Any]:
    return {"device": "virtual", "stage_ms": 30.0, "link": "shm", "evaluate": False, **settings}


def test_parts_last_and_what_comes_in_two_pieces_lasts_once() -> None:
    slept: list[float] = []
    pace = Pace(stage=0, seconds={"forward": 1.0, "backward": 2.0})
    paced = Paced(Spans(Telemetry(8)), pace, slept.append)
    for _ in range(2):  # the pass, and the loss
        with paced("forward"):
            pass
    with paced("backward"):
        pass
    with paced.piece("forward", 0.25):
        pass
    assert slept == pytest.approx([1.0, 2.0, 0.25], abs=0.01)


def test_a_sleep_that_is_too_long_is_made_up_for_and_slow_work_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("stepahead.workers.virtual.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def work(seconds: float) -> None:
        clock[0] += seconds

    paced = Paced(Spans(Telemetry(8)), Pace(stage=0, seconds={"forward": 1.0}), lambda left: work(left + 0.001))
    for _ in range(5):
        with paced.piece("forward", 1.0):
            work(0.5)
        with paced.piece("forward", 0.0):
            pass
    assert clock[0] == pytest.approx(5.001)  # and not 5.005
    with paced.piece("forward", 1.0):
        work(2.0)
    assert clock[0] == pytest.approx(7.001)
    with paced.piece("forward", 1.0):
        pass
    assert clock[0] == pytest.approx(8.001)
    work(1.0)  # whoever has waited begins then, late or not
    with paced.piece("forward", 1.0):
        pass
    assert clock[0] == pytest.approx(10.002)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_jitter_is_the_same_at_the_same_step(part: Part) -> None:
    one, same, other = (Pace(stage=stage, seconds={part: 1.0}, jitter=0.2, slow=2.0, seed=3) for stage in (1, 1, 2))
    lasts = [one.lasts(part, step) for step in range(200)]
    assert lasts == [same.lasts(part, step) for step in range(200)]
    assert lasts != [other.lasts(part, step) for step in range(200)]
    assert 1.6 <= min(lasts) < 1.7
    assert 2.3 < max(lasts) <= 2.4
    assert sum(lasts) / 200 == pytest.approx(2.0, abs=0.05)


def test_the_useful_parts_of_a_stage_make_its_time() -> None:
    plan = make_plan(Config(stages=3, **virtual()), job_of(mlp(), rows(3), signal=cheap))
    assert plan.devices == ("virtual",) * 3
    for pace in plan.paces:
        assert sum(pace.seconds[part] for part in USEFUL) == pytest.approx(0.030)
    assert plan.paces[0].seconds["predict"] > 0
    assert "predict" not in plan.paces[2].seconds
    blocks = make_plan(Config(stages=4, blocks=2, **virtual()), job_of(mlp(), rows(3), signal=cheap))
    assert ["predict" in pace.seconds for pace in blocks.paces] == [False, True, False, False]


def test_what_comes_seldom_is_measured_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A predictor that learns from each eighth batch does so once in twelve steps: too seldom for a median."""
    learnt: list[int] = []
    learn = Synthetic.learn

    def counted(self: Synthetic, h: Tensor, y: Tensor | None, delta: Tensor, step: int, *more: Tensor) -> Tensor | None:
        learnt.append(step)
        return learn(self, h, y, delta, step, *more)

    monkeypatch.setattr(Synthetic, "learn", counted)
    seldom = synthetic("linear", classes=CLASSES, every=8, optimizer=adam)
    make_plan(Config(stages=2, **virtual()), job_of(mlp(), rows(3), signal=seldom))
    assert len(learnt) > 5


def test_the_measured_copies_leave_the_model_alone() -> None:
    model = mlp()
    before = [weight.clone() for weight in model.parameters()]
    make_plan(Config(stages=2, **virtual()), job_of(model, rows(3)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "milliseconds"),
    [
        ({"schedule": "decoupled", "signal": "silent"}, 30),  # no tax: as long as the slowest
        ({"schedule": "lockstep"}, 60),  # but for an optimizer's step beside the other stage's backward pass
        pytest.param({"schedule": "gpipe", "microbatches": 4}, 30 * 5 / 4, marks=of_torch),
        ({"schedule": "decoupled", "signal": "silent", "slow_stage": "1:2"}, 60),
        ({"signal": "silent", "stages": 4, "blocks": 2}, 60),  # those of a block one after the other
    ],
)
def test_a_step_takes_what_its_schedule_makes_of_the_stages(
    settings: dict[str, Any], milliseconds: float, tmp_path: Path
) -> None:
    job = job_of(mlp(), rows(25))
    summary = train(job, run_dir=str(tmp_path / "run"), **virtual(**{"stages": 2, **settings}))
    assert summary["virtual"]
    taken = summary["wall_seconds"] / summary["steps"] * 1e3
    assert 0.8 * milliseconds < taken < 1.6 * milliseconds + 10


def test_slow_ways_hold_lockstep_up(tmp_path: Path) -> None:
    for schedule, more in (("lockstep", {}), *([("gpipe", {"microbatches": 2})] if is_available() else [])):
        job = job_of(mlp(), rows(8))
        settings = virtual(schedule=schedule, link_latency_ms=50.0, **more)
        summary = train(job, stages=2, run_dir=str(tmp_path / schedule), **settings)
        assert 0.100 < summary["wall_seconds"] / summary["steps"] < 0.400


def test_a_message_waits_for_its_latency_and_its_turn_on_the_way() -> None:
    sender, inner = in_shared_memory("0>1", 4)
    receiver = DelayedReceiver(inner, Delay(latency=0.05, gbps=0.008))  # a megabyte a second
    begun = time.monotonic()
    for step in range(2):
        sender.send(gradient(step, torch.zeros(5000)), timeout=1)  # 20 ms each on the way
    arrived: list[float] = []
    for step in range(2):
        assert receiver.receive(timeout=2).step == step
        arrived.append(time.monotonic() - begun)
    assert 0.07 <= arrived[0] < 0.15
    assert 0.09 <= arrived[1] < 0.2
    sender.send(batch(2), timeout=1)
    sender.close()
    assert receiver.receive(timeout=2).step == 2  # what was sent before the end comes
    with pytest.raises(PeerEndedError):
        receiver.receive(timeout=2)
    receiver.close()


def test_due_times_are_between_stages_only(tmp_path: Path) -> None:
    class Stage:
        stage_index = 1

        def forward_one_chunk(self, microbatch: int) -> torch.Tensor:
            return torch.zeros(10)

        def backward_one_chunk(self, microbatch: int) -> None: ...

    apart = DueTimes(tmp_path / "due", Delay(latency=0.04), lambda group: group, 3, 2)
    together = DueTimes(tmp_path / "due", Delay(latency=0.04), lambda group: 0, 3, 2)
    apart.note(0, 0, 0, 40)
    for times, least in ((together, 0.0), (apart, 0.03)):
        stage: Any = Stage()
        times.watch(stage)
        begun = time.monotonic()
        stage.forward_one_chunk(0)
        assert time.monotonic() - begun >= least
    assert not Delay()


def test_each_way_of_torchs_stages_has_its_own_width(tmp_path: Path) -> None:
    owner = partial(owner_of, "zbv", stages=2)  # groups 0 and 3 are one stage's, 1 and 2 the other's
    times = DueTimes(tmp_path / "due", Delay(gbps=0.008), owner, 4, 2)  # a megabyte a second
    begun = time.monotonic_ns()
    for plane, group in ((0, 0), (1, 3), (0, 1), (0, 3)):
        times.note(plane, group, 0, 20_000)
    down, up, within, nowhere = (times.due(*place) for place in ((0, 0, 0), (1, 3, 0), (0, 1, 0), (0, 3, 0)))
    assert down - begun >= 20_000_000
    assert abs(up - down) < 10_000_000  # beside each other, not one behind the other
    assert within == nowhere == 0
    times.note(0, 0, 1, 20_000)
    assert times.due(0, 0, 1) - down >= 20_000_000


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "virtual", "stage_ms": None}, "nothing says how long a stage takes; --stage-ms 240"),
        ({"device": "cpu"}, "stage_ms is 30.0, and device is 'cpu'; it is for --device virtual"),
        ({"stage_ms": 0.0}, "stage_ms is 0.0; it must be a number of milliseconds above 0"),
        ({"jitter": 1.0}, "jitter is 1.0; it must be a share from 0 to below 1"),
        ({"slow_stage": "2:1.5"}, "slow_stage is '2:1.5'; it must be stage:factor, each stage once, from 0 to 1"),
        ({"slow_stage": "1:nan"}, "slow_stage is '1:nan'"),
        ({"slow_stage": "1:inf"}, "slow_stage is '1:inf'"),
        ({"slow_stage": "1:2,1:3"}, "slow_stage is '1:2,1:3'"),
        ({"device": "virtual,cpu"}, "device is 'virtual,cpu'; virtual stages are all of them, or none"),
        ({"slow_stage": "one"}, "slow_stage is 'one'; .* --slow-stage 1:1.5"),
        ({"link_gbps": -1.0}, "link_gbps is -1.0; it must be a number of gigabits a second above 0"),
        ({"link_latency_ms": -1.0}, "link_latency_ms is -1.0; it must be"),
    ],
)
def test_what_a_virtual_device_is_not(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_plan(Config(stages=2, **virtual(**settings)), job_of(mlp(), rows(3)))


def test_short_actions_are_noted() -> None:
    notes = make_plan(Config(stages=2, **virtual(stage_ms=3.0)), job_of(mlp(), rows(3))).notes
    assert any("at the least; below 10 it measures the links too" in note for note in notes)
    assert parse_slow_stages("0:1.5,1:2", 2) == {0: 1.5, 1: 2.0}
    assert parse_slow_stages(None, 2) == {}
