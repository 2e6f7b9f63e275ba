"""What stages do with the truth when it comes, beside rules written down by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any, cast

import pytest
import torch
from nets import CLASSES, TRUTHS, Batch, activation, adam, assert_equal, cdni, make_stages, mlp, rows, sent, state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, SparseAdam
from torch.optim.lr_scheduler import OneCycleLR

from stepahead.pipeline import (
    KEEPS,
    RELAYS,
    Activation,
    Gradient,
    GradientKind,
    Group,
    MessageError,
    NonFiniteError,
    Recipe,
    Reference,
    Signal,
    Stage,
    Truth,
    UsageError,
    assemble,
    blend,
    cut_model,
    delayed,
    locked,
    synthetic,
)
from stepahead.pipeline.truth import Repair

sgd = partial(SGD, lr=0.05, momentum=0.5)


def normed() -> nn.Sequential:
    """Four layers, of which two keep buffers and two draw."""
    return nn.Sequential(
        nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(16, 16), nn.Tanh()),
        nn.Linear(16, CLASSES),
    )


def quiet() -> nn.Sequential:
    """Four layers whose gradients add up over passes: nothing is drawn, no buffer is kept."""
    hidden = [nn.Sequential(nn.Linear(12 if index == 0 else 16, 16), nn.Tanh()) for index in range(3)]
    return nn.Sequential(*hidden, nn.Linear(16, CLASSES))


class Gathering(SGD):
    """Adds up the gradients that it should have stepped on; `settle` steps on their sum."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.1)
        self.weights = [weight for group in self.param_groups for weight in group["params"]]
        self.sums = [torch.zeros_like(weight) for weight in self.weights]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for total, weight in zip(self.sums, self.weights, strict=True):
            if weight.grad is not None:
                total += weight.grad

    def settle(self) -> None:
        with torch.no_grad():
            for total, weight in zip(self.sums, self.weights, strict=True):
                weight -= 0.1 * total
                total.zero_()


class Wrong(nn.Linear):
    """A predictor that guesses at random, and is never right."""

    classes = None

    def forward(self, input: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(input)


frozen_guess = synthetic(
    lambda h: Wrong(h.shape[1], h.shape[1]),  # type: ignore[arg-type, return-value]
    optimizer=partial(SGD, lr=0.0),
)


def gathering(truth: Truth, example: Batch) -> list[Stage]:
    torch.manual_seed(5)
    return make_stages(cut_model(quiet(), 4), example, signal=frozen_guess, optimizer=Gathering, truth=truth)


def optimizer_of(stage: Stage) -> Gathering:
    assert stage.updater is not None
    assert isinstance(stage.updater.optimizer, Gathering)
    return stage.updater.optimizer


def pass_through(stages: Sequence[Stage], step: int, batch: Batch) -> None:
    """Send one batch all the way down, and all answers all the way up, before anything else."""
    message = Activation(edge="data>0", step=step, tensors=(batch[0],), label=batch[1])
    answers: list[Gradient] = []
    for stage in stages:
        down, up = sent(list(stage.step_ahead(message)))
        answers += up
        message = down[0] if down else message
    while answers:
        gradient = answers.pop()
        sender = int(gradient.edge.partition(">")[0])
        answers += sent(list(stages[sender].learn(gradient)))[1]


def true_gradients(groups: Sequence[Group], batch: Batch) -> list[list[Tensor]]:
    copies = deepcopy(list(groups))
    h = batch[0]
    for group in copies:
        h = group(h)
    torch.autograd.backward(F.cross_entropy(h, batch[1]))
    return [[weight.grad for weight in group.parameters() if weight.grad is not None] for group in copies]


def closely(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found, expected, strict=True))


OPTIONS: list[dict[str, Any]] = [{"relay": relay, "keep": keep} for relay in RELAYS for keep in KEEPS]


@pytest.mark.parametrize("options", OPTIONS)
def test_trued_up_before_the_same_step_it_is_backprop(options: dict[str, Any]) -> None:
    batches = rows(12)
    stages = gathering(Truth(use="true-up", every=1, **options), batches[0])
    plain = nn.Sequential(*deepcopy([stage.group for stage in stages]))
    optimizer = SGD(plain.parameters(), lr=0.1)
    for step, batch in enumerate(batches):
        pass_through(stages, step, batch)
        for stage in stages:
            stage.finish()
            optimizer_of(stage).settle()
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(plain(batch[0]), batch[1]))
        optimizer.step()
    assert closely([weight for stage in stages for weight in stage.group.parameters()], list(plain.parameters()))


@pytest.mark.parametrize("options", [*OPTIONS, {"spread": 3.0}])
@pytest.mark.parametrize("every", [1, 2, 4, (4, 2, 1), (6, 3, 3)])
def test_over_all_phases_the_sum_is_so_many_times_the_true_gradient(every: Any, options: dict[str, Any]) -> None:
    """At weights and predictors that stand still: the guess changes nothing in the mean."""
    assert closely(*sums_over_phases(every, options))


def test_without_the_factor_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Repair.add
    monkeypatch.setattr(Repair, "add", lambda self, gradients, factor: add(self, gradients, 1.0))
    assert not closely(*sums_over_phases(4, {}))
    assert closely(*sums_over_phases(1, {}))


def sums_over_phases(every: Any, options: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the sum of what the stages step on over as many passes of a batch as there are phases, and what is due."""
    phases = every if isinstance(every, int) else every[0]
    (batch,) = rows(1)
    stages = gathering(Truth(use="true-up", every=every, **options), batch)
    expected = true_gradients([stage.group for stage in stages], batch)
    for step in range(phases):
        pass_through(stages, step, batch)
    for stage in stages:
        stage.finish()
    sums = [total for stage in stages for total in optimizer_of(stage).sums]
    return sums, [phases * gradient for gradients in expected for gradient in gradients]


class ByHand:
    """Stages that step on the delayed truth alone, written down without any of ours but the keyed draws.

    Args:
        rerun: Whether a batch is run again with the weights of the day, or taken back at those it went forward with.
    """

    def __init__(self, groups: Sequence[Group], lags: Sequence[int], rerun: bool) -> None:
        self.groups = deepcopy(list(groups))
        self.optimizers = [sgd(group.parameters()) for group in self.groups]
        self.lags, self.rerun = lags, rerun
        self.kept: list[dict[int, Any]] = [{} for _ in groups]
        self.truths: list[dict[int, Tensor]] = [{} for _ in groups]

    def train(self, batches: Sequence[Batch]) -> None:
        last = len(self.groups) - 1
        for now in range(len(batches) + sum(self.lags)):
            for stage in range(last):
                self.step(stage, now - self.lags[stage])
            if now < len(batches):
                self.forward(now, batches[now])

    def forward(self, now: int, batch: Batch) -> None:
        h, label = batch
        for stage, group in enumerate(self.groups[:-1]):
            copy = deepcopy(group)
            given = h.detach().clone().requires_grad_()
            out = copy(given)
            group.load_state_dict(dict(group.state_dict()) | dict(copy.named_buffers()))
            self.kept[stage][now] = given, out, copy
            h = out.detach()
        h.requires_grad_()
        self.optimizers[-1].zero_grad()
        torch.autograd.backward(F.cross_entropy(self.groups[-1](h), label))
        self.optimizers[-1].step()
        assert h.grad is not None
        self.truths[-2][now] = h.grad

    def step(self, stage: int, of: int) -> None:
        if of not in self.kept[stage]:
            return
        group = self.groups[stage]
        given, out, copy = self.kept[stage].pop(of)
        if self.rerun:
            copy = deepcopy(group)
            given = given.detach().requires_grad_()
            out = copy(given)
        copy.zero_grad()
        torch.autograd.backward(out, self.truths[stage].pop(of))
        for weight, other in zip(group.parameters(), copy.parameters(), strict=True):
            weight.grad = other.grad
        self.optimizers[stage].step()
        if stage:
            self.truths[stage - 1][of] = given.grad


@pytest.mark.parametrize("use", ["replay", "stash"])
@pytest.mark.parametrize("lags", [[6, 4, 2], [12, 7, 3]])
def test_stepping_late_is_the_published_rule(use: Any, lags: list[int]) -> None:
    torch.manual_seed(2)
    batches = rows(30)
    groups = cut_model(without_dropout(normed()), 4)
    by_hand = ByHand(groups, lags, rerun=use == "replay")
    stages = make_stages(groups, batches[0], truth=Truth(use=use), optimizer=sgd)
    list(Reference(stages, truth_lag=lags).train(batches))
    by_hand.train(batches)
    for ours, theirs in zip(groups, by_hand.groups, strict=True):
        assert closely(list(ours.parameters()), list(theirs.parameters()))
        assert closely([b.float() for b in ours.buffers()], [b.float() for b in theirs.buffers()])


def test_stages_whose_truths_come_late_learn_at_lower_rates() -> None:
    truth = Truth(use="true-up", every=1, full_rate_lag=3)
    rates = [3 / 6, 3 / 4, 1.0, 1.0]
    assert [truth.at(index, 4).rate for index in range(4)] == rates
    assert [Truth(use="true-up", full_rate_lag=math.inf).at(index, 4).rate for index in range(4)] == [1.0] * 4
    assert Truth(use="learn", full_rate_lag=1).at(0, 4).rate == 1.0  # it steps on its guess alone
    batches = rows(12)
    ours, by_hand = cut_model(quiet(), 4), cut_model(quiet(), 4)
    for group, twin in zip(ours, by_hand, strict=True):
        twin.load_state_dict(group.state_dict())
    cycle_of = [partial(OneCycleLR, max_lr=0.1 * rate, total_steps=12) for rate in rates]
    common: dict[str, Any] = {"signal": cdni, "optimizer": sgd}
    one = make_stages(
        ours, batches[0], truth=truth, lr_schedule=partial(OneCycleLR, max_lr=0.1, total_steps=12), **common
    )
    other = make_stages(by_hand, batches[0], truth=replace(truth, full_rate_lag=9), lr_schedule=cycle_of, **common)
    for stages in (one, other):
        list(Reference(stages).train(batches))
    for group, twin in zip(ours, by_hand, strict=True):
        assert closely(list(group.parameters()), list(twin.parameters()))
    assert len({stage.updater.optimizer.param_groups[0]["lr"] for stage in one if stage.updater}) == 1


class TruedUpByHand:
    """Stages that step on frozen guesses and make up for them later, written down likewise."""

    def __init__(
        self, groups: Sequence[Group], guesses: Sequence[nn.Module], every: int, *, keep: str, relay: str
    ) -> None:
        self.groups = deepcopy(list(groups))
        self.guesses = list(guesses)
        self.optimizers = [sgd(group.parameters()) for group in self.groups]
        self.every, self.keep, self.relay = every, keep, relay
        self.kept: list[dict[int, Any]] = [{} for _ in groups]
        self.truths: list[dict[int, Tensor]] = [{} for _ in groups]
        self.pending: list[list[Tensor]] = [[torch.zeros_like(w) for w in group.parameters()] for group in groups]

    def train(self, batches: Sequence[Batch], lags: Sequence[int]) -> None:
        for now in range(len(batches) + sum(lags)):
            for stage in range(len(lags)):
                self.repair(stage, now - lags[stage])
            if now < len(batches):
                self.forward(now, batches[now])
        for group, optimizer, pending in zip(self.groups, self.optimizers, self.pending, strict=True):
            if any(gradient.any() for gradient in pending):  # the last step, of repairs alone
                for weight, gradient in zip(group.parameters(), pending, strict=True):
                    weight.grad = gradient
                optimizer.step()

    def forward(self, now: int, batch: Batch) -> None:
        h, label = batch
        for stage, group in enumerate(self.groups):
            given = h.detach().clone().requires_grad_()
            before = deepcopy(group)
            out = group(given)
            last = stage == len(self.groups) - 1
            guess = None if last else self.guesses[stage](out.detach()).detach() / len(out)
            group.zero_grad()
            torch.autograd.backward(F.cross_entropy(out, label) if last else out, None if last else guess)
            for weight, gradient in zip(group.parameters(), self.pending[stage], strict=True):
                assert weight.grad is not None
                weight.grad += gradient
                gradient.zero_()
            self.optimizers[stage].step()
            if last:
                self.truths[stage - 1][now] = given.grad  # type: ignore[assignment]
            elif now % self.every == 0:
                self.kept[stage][now] = given.detach(), guess, given.grad, before
            h = out.detach()

    def repair(self, stage: int, of: int) -> None:
        if of not in self.kept[stage]:
            return
        given, guess, said, before = self.kept[stage].pop(of)
        copy = before if self.keep == "graph" else deepcopy(self.groups[stage])
        truth = self.truths[stage].pop(of)
        h = given.clone().requires_grad_()
        copy.zero_grad()
        torch.autograd.backward(copy(h), truth - guess)
        for gradient, weight in zip(self.pending[stage], copy.parameters(), strict=True):
            assert weight.grad is not None
            gradient += self.every * weight.grad
        if stage and self.relay == "sum":
            self.truths[stage - 1][of] = said + h.grad
        elif stage:
            again = given.clone().requires_grad_()
            (self.truths[stage - 1][of],) = torch.autograd.grad(copy(again), again, truth)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_truing_up_is_its_rule_also_while_weights_move(options: dict[str, Any], every: int) -> None:
    batches, lags = rows(30), [6, 4, 2]
    groups = cut_model(quiet(), 4)
    truth = Truth(use="true-up", every=every, **options)
    stages = make_stages(groups, batches[0], signal=frozen_guess, truth=truth, optimizer=sgd)
    guesses = [cast(Any, stage.signal).predictor for stage in stages[:-1]]
    by_hand = TruedUpByHand(groups, guesses, every, **options)
    by_hand.train(batches, lags)
    list(Reference(stages, truth_lag=lags).train(batches))
    for ours, theirs in zip(groups, by_hand.groups, strict=True):
        assert closely(list(ours.parameters()), list(theirs.parameters()))


def without_dropout(model: nn.Module) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("use", ["replay", "true-up", "learn"])
def test_running_a_batch_again_leaves_buffers_and_draws_as_they_were(use: Any) -> None:
    stages = make_stages(cut_model(normed(), 4), rows(1)[0], signal=cdni, truth=Truth(use=use))
    answers: list[Gradient] = []
    message: Activation = activation()
    for stage in stages:
        down, up = sent(list(stage.step_ahead(message)))
        answers += up
        message = down[0] if down else message
    before = [buffer.clone() for stage in stages for buffer in stage.group.buffers()]
    stream = torch.get_rng_state()
    seen = 0
    while answers:
        gradient = answers.pop()
        seen += 1
        answers += sent(list(stages[int(gradient.edge[0])].learn(gradient)))[1]
    assert seen == 3
    assert_equal([buffer for stage in stages for buffer in stage.group.buffers()], before)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(int(before[index]) == 1 for index in (2, 5))  # num_batches_tracked


def test_a_batch_that_is_run_again_draws_what_it_drew() -> None:
    """At weights that have not moved in between, stepping late is plain backprop, to the bit."""
    (batch,) = rows(1)
    ends: list[list[Tensor]] = []
    for recipe in ({"signal": locked}, {"truth": Truth(use="replay")}, {"truth": Truth(use="stash")}):
        torch.manual_seed(4)
        groups = cut_model(normed(), 4)
        list(Reference(make_stages(groups, batch, **recipe)).train([batch]))
        ends.append(state(groups))
    assert_equal(ends[0], ends[1])
    assert_equal(ends[0], ends[2])


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("mode", ["exact", "free"])
def test_the_same_seed_gives_the_same_run_and_nothing_is_kept_at_the_end(name: str, mode: Any) -> None:
    batches = rows(17)

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        groups = cut_model(normed(), 4)
        stages = make_stages(groups, batches[0], signal=cdni, truth=TRUTHS[name])
        list(Reference(stages, mode=mode, lag=3).train(batches))
        assert [(len(stage.kept), stage.kept.nbytes, stage.kept.graphs) for stage in stages] == [(0, 0, 0)] * 4
        return state(groups)

    assert_equal(run(), run())


@pytest.mark.parametrize("name", TRUTHS)
def test_it_trains(name: str) -> None:
    batches = rows(4, size=16)
    stages = make_stages(cut_model(quiet(), 4), batches[0], signal=cdni, truth=TRUTHS[name])
    reports = list(Reference(stages).train(islice(cycle(batches), 400)))
    assert sum(report.loss for report in reports[-4:]) < 0.5 * sum(report.loss for report in reports[:4])


def test_the_truth_is_relayed_to_the_first_stage() -> None:
    kinds: list[list[GradientKind]] = [[] for _ in range(3)]
    stages = make_stages(cut_model(mlp(), 4), rows(1)[0], signal=cdni, truth=Truth(use="learn", every=2))
    for stage, seen in zip(stages[:-1], kinds, strict=True):
        stage.learn = watching(stage.learn, seen)  # type: ignore[method-assign,assignment]
    list(Reference(stages).train(rows(8)))
    truth, target = GradientKind.TRUTH, GradientKind.TARGET
    assert sorted(kinds[0]) == sorted(kinds[1]) == [target] * 4 + [truth] * 4
    assert kinds[2] == [truth] * 8


def watching(learn: Callable[[Gradient], Iterator[Any]], seen: list[GradientKind]) -> Callable[[Gradient], Any]:
    def watch(gradient: Gradient) -> Iterator[Any]:
        seen.append(gradient.kind)
        return learn(gradient)

    return watch


def test_what_is_kept_is_counted() -> None:
    data, label = 8 * 12 * 4, 8 * 8
    h = 8 * 16 * 4
    weights = (12 * 16 + 16 + 16 * 16 + 16) * 4
    for truth, nbytes, graphs in (
        (Truth(), h + label, 0),
        (Truth(use="learn"), h + label, 0),  # the first stage owes it to nobody
        (Truth(use="true-up", every=1), h + label + data + h, 0),
        (Truth(use="true-up", every=1, keep="graph"), h + label + h + weights, 1),
        (Truth(use="replay"), h + label + data, 0),
        (Truth(use="stash"), h + label + weights, 1),
    ):
        stage = make_stages(cut_model(mlp(), 3), rows(1)[0], signal=cdni, truth=truth)[0]
        for step in range(3):
            list(stage.step_ahead(activation(step=step)))
        assert (stage.statistics().held, stage.kept.graphs) == (3 * nbytes, 3 * graphs)


def test_a_truth_that_is_not_finite_is_named_or_passed_on() -> None:
    def middle(policy: Any) -> Stage:
        made = make_stages(
            cut_model(mlp(), 3), rows(1)[0], signal=cdni, truth=Truth(use="true-up", every=1), on_non_finite=policy
        )
        list(made[1].step_ahead(activation(data=torch.randn(8, 16), edge="0>1")))
        return made[1]

    bad = Gradient(edge="1>2", step=0, tensors=(torch.full((8, 16), torch.nan),), kind=GradientKind.TRUTH)
    with pytest.raises(NonFiniteError, match=r"stage 1, step 0 .*the gradient from below has 128 of 128"):
        list(middle("stop").learn(bad))
    (passed,) = list(middle("skip").learn(bad))
    assert isinstance(passed, Gradient)
    assert passed.tensors[0].isnan().all()


def test_a_target_in_place_of_the_truth_is_refused() -> None:
    stage = make_stages(cut_model(mlp(), 3), rows(1)[0], signal=cdni, truth=Truth(use="true-up", every=1))[0]
    list(stage.step_ahead(activation()))
    target = Gradient(edge="0>1", step=0, tensors=(torch.zeros(8, 16),), kind=GradientKind.TARGET)
    with pytest.raises(MessageError, match="stage 0, step 0: a target came, where the truth was due"):
        list(stage.learn(target))


@pytest.mark.parametrize("make", [mlp, normed])
@pytest.mark.parametrize("name", TRUTHS)
def test_batches_that_are_not_finite_are_passed_over(name: str, make: Callable[[], nn.Module]) -> None:
    batches = rows(20)
    batches[7] = (torch.full_like(batches[7][0], torch.inf), batches[7][1])
    groups = cut_model(make(), 4)
    stages = make_stages(groups, batches[0], signal=cdni, truth=TRUTHS[name], on_non_finite="skip")
    list(Reference(stages).train(batches))
    assert all(tensor.isfinite().all() for tensor in state(groups))
    assert [len(stage.kept) for stage in stages] == [0] * 4
    assert all(stage.skipped for stage in stages)


class Spoilt(Wrong):
    """Guesses infinity once."""

    calls = 0

    def forward(self, input: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += not torch.is_grad_enabled()  # to guess, not to learn
        return super().forward(input) * (torch.inf if self.calls == 9 and not torch.is_grad_enabled() else 0.01)


@pytest.mark.parametrize("options", [{}, {"spread": 2.0}, {"keep": "graph"}])
def test_a_guess_that_is_not_finite_costs_its_own_batch_alone(options: dict[str, Any]) -> None:
    batches, predictors = rows(60), synthetic(lambda h: Spoilt(h.shape[1], h.shape[1]), optimizer=partial(SGD, lr=0.0))  # type: ignore[arg-type, return-value]
    truth = Truth(use="true-up", every=2, **options)
    groups = cut_model(quiet(), 4)
    stages = make_stages(groups, batches[0], signal=predictors, truth=truth, on_non_finite="skip")
    list(Reference(stages).train(batches))
    assert [stage.skipped for stage in stages] == [1, 1, 1, 0]
    assert all(tensor.isfinite().all() for tensor in state(groups))


class ShareOfTruth(Signal):
    """Says a share of the true gradient: it has the classifier, which stands still."""

    def __init__(self, classifier: nn.Module, share: float) -> None:
        super().__init__()
        self.classifier, self.share = classifier, share

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        h = h.detach().requires_grad_()
        assert y is not None
        with torch.enable_grad():
            (true,) = torch.autograd.grad(F.cross_entropy(self.classifier(h), y), h)
        return self.share * true


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_what_steps_miss_is_measured(share: float) -> None:
    """As a part of the true gradient: below 1 a step points downhill."""
    groups = cut_model([nn.Sequential(nn.Linear(12, 8), nn.Tanh()), nn.Linear(8, CLASSES)], 2)
    stages = make_stages(
        groups,
        rows(1)[0],
        signal=lambda h, y: ShareOfTruth(groups[1], share),
        truth=Truth(use="true-up", every=1),
        optimizer=partial(SGD, lr=0.0),
    )
    for _ in Reference(stages).train(rows(4)):
        pass
    assert stages[0].statistics().missed == pytest.approx(1 - share, abs=1e-5)


def test_repairs_of_sparse_gradients_stay_sparse() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Flatten()), nn.Linear(32, 8), nn.Linear(8, 5)
    )
    batches = [(torch.randint(9, (6, 4)), torch.randint(CLASSES, (6,))) for _ in range(12)]
    optimizers = [partial(SparseAdam, lr=0.01), adam, adam]
    groups = cut_model(model, 3)
    truth = Truth(use="true-up", every=2)
    stages = make_stages(groups, batches[0], signal=frozen_guess, optimizer=optimizers, truth=truth)
    before = state([groups[0]])
    list(Reference(stages).train(batches))
    assert not torch.equal(before[0], state([groups[0]])[0])


def test_a_frozen_stage_in_the_middle_passes_the_truth_on() -> None:
    batches = rows(12)
    groups = cut_model(quiet(), 4)
    truth = Truth(use="true-up", every=2)
    stages = make_stages(groups, batches[0], signal=cdni, optimizer=[adam, None, adam, adam], truth=truth)
    before = [state([group]) for group in groups]
    list(Reference(stages).train(batches))
    assert_equal(state([groups[1]]), before[1])
    assert not torch.equal(state([groups[0]])[0], before[0][0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Truth(use="true_up"), "the truth's use is 'true_up'; did you mean 'true-up'?"),  # type: ignore[arg-type]
        (lambda: Truth(use="true-up", every=0), "the truth is used of every 0-th batch; that must be at least 1"),
        (lambda: Truth(use="replay", every=2), "with replay, stages step on the truth alone, so they need that of"),
        (lambda: Truth(use="true-up", every=(2, 3, 1)), "a stage that uses each 2-th truth is above one that has each"),
        (lambda: Truth(use="stash", full_rate_lag=0), "stages learn at full rate up to a lag of 0; that must be"),
        (lambda: Truth(use="true-up", spread=0.5), "a repair is spread over 0.5 steps; that must be at least 1"),
        (lambda: Truth(use="learn", every=(2, 1)).at(0, 4), "the truth has 2 periods, and 3 stages use it"),
        (
            lambda: stages_with(Truth(use="true-up", every=1), locked),
            "Locked waits for the gradient from the stage below; lea",
        ),
        (lambda: stages_with(Truth(use="learn"), blend(0.5, optimizer=adam)), "Blend waits for the gradient"),
        (lambda: stages_with(Truth(use="off"), delayed), "the signal Delayed and the truth's use 'off' do not go tog"),
        (
            lambda: Reference(stages_with(Truth(use="replay"), locked), truth_lag=[4, 4]),
            r"lags of the truth are \[4, 4\]; they must fall: a stage has it from the one below",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def stages_with(truth: Truth, signal: Any) -> list[Stage]:
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=signal, optimizer=partial(Adam, lr=0.01), truth=truth)
    return assemble(cut_model(mlp(), 3), rows(1)[0], recipe)
