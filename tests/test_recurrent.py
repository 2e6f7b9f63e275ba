"""Recurrent cores over windows: cut off they are plain truncated backprop; what is guessed goes back as autograd says.

Targets over all windows that follow are the gradients of backprop through the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import CLASSES, TRUTHS, adam, assert_equal, make_stages, state
from test_processes import job_of, reference_sha256, train
from torch import Tensor, nn

from stepahead.pipeline import (
    LayerNormLSTMCell,
    Recurrent,
    Reference,
    Signal,
    Truth,
    Unrolled,
    UsageError,
    cut_model,
    locked,
    synthetic,
)
from stepahead.workers import check_ledgers

WIDTH, STEPS, BATCH = 6, 3, 4
FUTURE = synthetic("mlp", hidden=8, optimizer=adam)
CORES: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: nn.RNN(5, WIDTH, batch_first=True),
    "GRU of two layers": lambda: nn.GRU(5, WIDTH, 2, batch_first=True),
    "LSTM of two layers": lambda: nn.LSTM(5, WIDTH, 2, batch_first=True),
    "cell": lambda: Unrolled(nn.GRUCell(5, WIDTH)),
    "LayerNorm LSTM": lambda: Unrolled(LayerNormLSTMCell(5, WIDTH)),
}


class Told(Signal):
    """Says what it was told to say, and writes down what it was to learn."""

    def __init__(self, rows: Tensor, says: Tensor | float = 0.0, pull: float | None = None) -> None:
        super().__init__()
        self.says = torch.as_tensor(says).expand_as(rows).clone()
        self.pull = pull
        self.learnt: list[tuple[Tensor, Tensor]] = []

    def gradient(self, h: Tensor, y: Tensor | None, waited: Tensor | None = None) -> Tensor:
        return self.says

    def wants(self, step: int) -> bool:
        return True

    @property
    def pulls(self) -> bool:
        return self.pull is not None

    def learn(self, h: Tensor, y: Tensor | None, delta: Tensor, step: int, *more: Tensor) -> Tensor | None:
        self.learnt.append((h.clone(), delta.clone()))
        return None if self.pull is None else torch.full_like(h, self.pull)


class Teller:
    """Makes signals that were told what to say, and keeps them."""

    def __init__(self, says: Tensor | float = 0.0, pull: float | None = None) -> None:
        self.says, self.pull = says, pull
        self.made: list[Told] = []

    def __call__(self, h: Tensor, y: Tensor | None) -> Signal:
        self.made.append(Told(h, self.says, self.pull))
        return self.made[-1]

    @property
    def targets(self) -> list[Tensor]:
        return [delta for _, delta in self.made[0].learnt]


def windows(count: int, batch: int = BATCH) -> list[Tensor]:
    return [torch.randn(batch, STEPS, 5) for _ in range(count)]


def loss_of(outputs: Tensor) -> Tensor:
    return outputs.square().mean()


def gradients(module: nn.Module) -> list[Tensor]:
    return [weight.grad.clone() for weight in module.parameters() if weight.grad is not None]


def flat(hidden: Any) -> Tensor:
    """The state of one of torch's cores as rows."""
    parts = hidden if isinstance(hidden, tuple) else (hidden,)
    return torch.cat([part.movedim(1, 0).flatten(1) for part in parts], dim=1)


@pytest.mark.parametrize("name", CORES)
def test_windows_go_on_where_the_last_one_ended(name: str) -> None:
    core = CORES[name]()
    parts, layer = windows(4), Recurrent(core, FUTURE)
    with torch.no_grad():
        whole, _ = core(torch.cat(parts, dim=1), None)
        torch.testing.assert_close(torch.cat([layer(part) for part in parts], dim=1), whole)
        layer.reset()
        torch.testing.assert_close(layer(parts[0]), whole[:, :STEPS])


@pytest.mark.parametrize("name", CORES)
def test_without_a_guess_it_is_truncated_backprop_to_the_bit(name: str) -> None:
    core = CORES[name]()
    plain, layer = deepcopy(core), Recurrent(core)
    carried: Any = None
    for x in windows(5):
        if carried is not None:
            carried = tuple(part.detach() for part in carried) if isinstance(carried, tuple) else carried.detach()
        outputs, carried = plain(x, carried)
        for model, loss in ((plain, loss_of(outputs)), (core, loss_of(layer(x)))):
            model.zero_grad()
            layer.backward(loss)
            adam(model.parameters()).step()
    assert_equal(state([core]), state([plain]))


@pytest.mark.parametrize("name", CORES)
def test_every_core_learns_with_guesses_of_its_future(name: str) -> None:
    layer = Recurrent(CORES[name](), FUTURE, ahead=synthetic("linear", optimizer=adam, propagates=True), span=2)
    optimizer = adam(layer.parameters())
    before = state([layer])
    for x in windows(6):
        optimizer.zero_grad()
        layer.backward(loss_of(layer(x)))
        optimizer.step()
    assert layer.quality is not None
    assert layer.quality.batches == 4
    assert all(not torch.equal(old, new) for old, new in zip(before, state([layer]), strict=True))


def test_a_guess_goes_back_from_the_state_at_the_end() -> None:
    core, said = CORES["LSTM of two layers"](), torch.randn(BATCH, 4 * WIDTH)
    layer, (x,) = Recurrent(core, Teller(said), scale=0.5), windows(1)
    layer.backward(loss_of(layer(x)))
    found = gradients(core)
    core.zero_grad()
    outputs, hidden = core(x)
    (loss_of(outputs) + (0.5 * said * flat(hidden)).sum()).backward()  # pyright: ignore[reportUnknownMemberType]
    assert len(found) == 8
    for a, b in zip(found, gradients(core), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("core", ["GRU of two layers", "LSTM of two layers"])
@pytest.mark.parametrize("span", [1, 2, 3])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_targets_are_gradients_of_the_windows_that_they_span(core: str, span: int, decay: float) -> None:
    """With the weights at rest, and guesses of a number: sum over windows of decayed differences, by autograd."""
    inner, parts, says = CORES[core](), windows(6), 0.01
    teller = Teller(says)
    layer = Recurrent(inner, teller, span=span, decay=decay)
    for x in parts:
        layer.backward(loss_of(layer(x)))
    starts = [None, *(flat_of(inner, parts[:k]) for k in range(1, 6))]
    assert len(teller.targets) == 5 - (span - 1)
    for k, target in enumerate(teller.targets, start=1):
        torch.testing.assert_close(target, expected_target(inner, parts, starts, k, span, decay, says))


def flat_of(core: nn.Module, parts: Sequence[Tensor]) -> Any:
    """The state after some windows."""
    with torch.no_grad():
        return core(torch.cat(list(parts), dim=1))[1]


def expected_target(
    core: nn.Module, parts: Sequence[Tensor], starts: Sequence[Any], k: int, span: int, decay: float, says: float
) -> Tensor:
    """The gradient at the start of window k, by the recursion G = g + J'((1 - decay) guess + decay G)."""

    def back(number: int, left: int) -> Tensor:
        begun = starts[number]
        parts_of = begun if isinstance(begun, tuple) else (begun,)
        leaves = [part.detach().requires_grad_() for part in parts_of]
        outputs, end = core(parts[number], tuple(leaves) if isinstance(begun, tuple) else leaves[0])
        guess = torch.full_like(flat(end), says)
        later = guess if left == 1 else (1 - decay) * guess + decay * back(number + 1, left - 1)
        objective = loss_of(outputs) + (later * flat(end)).sum()
        found = torch.autograd.grad(objective, leaves)
        return flat(found if isinstance(begun, tuple) else found[0])

    return back(k, span)


def test_targets_over_all_windows_are_backprop_through_the_whole_sequence() -> None:
    core, parts, teller = CORES["RNN"](), windows(3), Teller(0.0)
    layer = Recurrent(core, teller, span=9, windows=3)
    for x in (*parts, *windows(1)):  # the next sequence ends this one
        layer.backward(loss_of(layer(x)))
    hidden = core(parts[0])[1].detach().requires_grad_()
    outputs, _ = core(torch.cat(parts[1:], dim=1), hidden)
    loss = sum(loss_of(part) for part in outputs.split(STEPS, dim=1))
    assert isinstance(loss, Tensor)
    torch.testing.assert_close(teller.targets[0], flat(torch.autograd.grad(loss, hidden)[0]))
    assert len(teller.targets) == 2


def test_nothing_is_guessed_at_the_end_of_a_sequence() -> None:
    teller = Teller(5.0)
    layer, plain = Recurrent(CORES["RNN"](), teller, windows=2), CORES["RNN"]()
    inner: Any = layer.core
    plain.load_state_dict(inner.state_dict())
    first, second = windows(2)
    layer(first)
    layer.zero_grad()
    layer.backward(loss_of(layer(second)))
    plain.zero_grad()
    loss_of(plain(second, plain(first)[1].detach())[0]).backward()  # pyright: ignore
    assert_equal(gradients(layer), gradients(plain))
    torch.testing.assert_close(layer(first), plain(first)[0])  # a new sequence
    layer(second, last=True)
    torch.testing.assert_close(layer(second), plain(second)[0])


def test_sequences_of_a_batch_start_anew_one_by_one() -> None:
    teller = Teller()
    layer, (first, second) = Recurrent(CORES["LSTM of two layers"](), teller), windows(2)
    inner: Any = layer.core
    layer.backward(loss_of(layer(first)))
    reset = torch.tensor([True, False, False, True])
    outputs = layer(second, reset=reset)
    torch.testing.assert_close(outputs[reset], inner(second)[0][reset])
    layer.backward(loss_of(outputs))
    (target,) = teller.targets
    assert (target[reset] == 0).all()
    assert (target[~reset] != 0).any(dim=1).all()


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_what_the_head_missed_goes_back_through_the_step_before(scale: float) -> None:
    core, parts = CORES["GRU of two layers"](), windows(2)
    layer = Recurrent(core, Teller(0.0), ahead=Teller(pull=0.3), ahead_scale=scale)
    layer.backward(loss_of(layer(parts[0])))
    core.zero_grad()
    layer.backward(loss_of(layer(parts[1])))
    found = gradients(core)
    core.zero_grad()
    hidden = core(parts[0][:, :-1])[1].detach()
    _, end = core(parts[0][:, -1:], hidden)
    outputs, _ = core(parts[1], core(parts[0])[1].detach())
    (loss_of(outputs) + scale * 0.3 * end.sum()).backward()
    for a, b in zip(found, gradients(core), strict=True):
        torch.testing.assert_close(a, b)


def test_a_copy_has_no_window_under_way() -> None:
    layer = Recurrent(CORES["RNN"](), FUTURE)
    layer.backward(loss_of(layer(windows(1)[0])))
    layer(windows(1)[0])
    copy = deepcopy(layer)
    assert copy.take_window() is None
    assert copy.carried.state is None
    assert_equal(state([copy]), state([layer]))


class Bad(nn.Module):
    """A core that gives back what no core should."""

    def __init__(self, gives: object) -> None:
        super().__init__()
        self.gives = gives

    def forward(self, x: Tensor, hidden: Any) -> object:
        return self.gives


class Wrapped(nn.Module):
    """A user's core around one of torch's, whose state has the layers first."""

    def __init__(self) -> None:
        super().__init__()
        self.core = CORES["LSTM of two layers"]()

    def forward(self, x: Tensor, start: Any) -> Any:
        return self.core(x, start)


def test_a_core_of_ones_own_may_have_sequences_in_any_dimension() -> None:
    wrapped = Wrapped()
    made: list[list[Tensor]] = []
    for core, batch_dim in ((wrapped, 1), (wrapped.core, None)):
        layer = Recurrent(core, FUTURE, batch_dim=batch_dim)
        torch.manual_seed(0)
        for x in windows(4):
            wrapped.zero_grad()
            layer.backward(loss_of(layer(x)))
        made.append(gradients(wrapped))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


def test_a_state_may_be_one_number_for_each_sequence() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
            total = self.scale * x.sum(dim=(1, 2)) + (0 if start is None else start)
            return total[:, None].expand(-1, STEPS), total

    layer = Recurrent(Sum(), FUTURE)
    for x in windows(3):
        layer.backward(loss_of(layer(x)))
    assert layer.quality is not None


def test_bad_cores_and_settings_are_named() -> None:
    recurrent: Any = Recurrent
    for arguments, words in (
        ((nn.LSTM(2, 3),), "LSTM has the batch second; make it with batch_first=True"),
        ((nn.GRU(2, 3, batch_first=True, bidirectional=True),), "GRU is bidirectional"),
        ((nn.LSTMCell(2, 3),), r"LSTMCell takes one step, not a window; make it Unrolled\(LSTMCell"),
        ((CORES["RNN"](), None, FUTURE), "give that too"),
    ):
        with pytest.raises(UsageError, match=words):
            recurrent(*arguments[:2], ahead=arguments[2] if len(arguments) > 2 else None)
    for options, words in (
        ({"windows": 0}, "a sequence has 0 windows"),
        ({"span": 0}, "made of 0 windows"),
        ({"decay": 1.5}, "the decay is 1.5"),
    ):
        with pytest.raises(UsageError, match=words):
            recurrent(CORES["RNN"](), **options)
    x = windows(1)[0]
    for gives, words in (
        (x, "Bad gave a Tensor"),
        ((x, x, x), "Bad gave 3 things"),
        ((x, {"h": x}), "a recurrent state is a tensor or a tuple of them; a dict came"),
        ((x, (x, None)), "a NoneType came"),
        ((x, ()), "an empty tuple came"),
        ((x, (x, torch.zeros(BATCH, dtype=torch.long))), r"a tensor of torch\.int64 in it cannot"),
        ((x, torch.tensor(1.0)), r"a window has 4 sequences, and a tensor of its state the shape \[\]"),
        ((x, x[None]), r"\[1, 4, 3, 5\]: that is not one for each in dimension 0; say which it is, .*batch_dim=1"),
    ):
        with pytest.raises(UsageError, match=words):
            Recurrent(Bad(gives))(x)
    layer = Recurrent(CORES["RNN"]())
    layer(x)
    with pytest.raises(UsageError, match=r"a window of 3 sequences follows one of 4; call reset\(\)"):
        layer(x[:3])


def test_signals_that_do_not_suit_a_windows_end_are_named() -> None:
    pulling = synthetic("linear", optimizer=adam, propagates=True)
    for future, ahead, words in (
        (locked, None, "Locked waits for the gradient from the stage below"),
        (pulling, None, "cannot flow into a window that is over"),
        (FUTURE, FUTURE, "must flow into the core"),
    ):
        layer = Recurrent(CORES["RNN"](), future, ahead=ahead)
        with pytest.raises(UsageError, match=words):
            layer.backward(loss_of(layer(windows(1)[0])))


class Head(nn.Linear):
    """A classifier of the outputs of a window's last step."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[:, -1])


def stacked(future: Any = FUTURE, windows: int | None = 4, **options: Any) -> nn.Sequential:
    """Three recurrent layers and a classifier, for sequences of four windows unless said."""
    widths = [5, WIDTH, WIDTH, WIDTH]
    layers: list[nn.Module] = [
        Recurrent(nn.LSTM(i, o, batch_first=True), future, windows=windows, **options) for i, o in pairwise(widths)
    ]
    return nn.Sequential(*layers, Head(WIDTH, CLASSES))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.randint(CLASSES, (BATCH,))) for x in windows(count)]


def test_locked_stages_are_a_loop_of_ones_own_to_the_bit() -> None:
    """Guesses of what comes in time, none of depth; keyed alike there is nothing that draws."""
    model, data = stacked(), batches(12)
    plain = deepcopy(model)
    groups = cut_model(model, 2)
    for _ in Reference(make_stages(groups, data[0])).train(data):
        pass
    layers = [layer for layer in plain if isinstance(layer, Recurrent)]
    optimizer = adam(plain.parameters())
    for x, y in data:
        optimizer.zero_grad()
        layers[0].backward(nn.functional.cross_entropy(plain(x), y), *layers[1:])
        optimizer.step()
    assert_equal(state(groups), state([plain]))


def test_an_evaluation_begins_with_new_sequences_and_leaves_training_alone() -> None:
    model, data = stacked(), batches(12)
    alone = deepcopy(model)
    for each, evaluates in ((model, True), (alone, False)):
        reference = Reference(make_stages(cut_model(each, 3), data[0], signal=FUTURE_IN_DEPTH))
        for _ in reference.train(data[:10]):
            if evaluates:
                first = reference.evaluate(data[:3])
                assert reference.evaluate(data[:3]) == first
        assert reference.stages[0].statistics().windows is not None
    assert_equal(state([model]), state([alone]))


FUTURE_IN_DEPTH = synthetic("token", optimizer=adam)


FAR: dict[str, Any] = {"ahead": synthetic("linear", optimizer=adam, propagates=True), "span": 2}


@pytest.mark.parametrize(("use", "options"), [*((use, {}) for use in ("off", *TRUTHS)), ("off", FAR), ("stash", FAR)])
def test_exact_processes_are_the_reference_in_time_and_depth(use: str, options: dict[str, Any], tmp_path: Path) -> None:
    truth = TRUTHS.get(use, Truth())
    model, data = stacked(**options), batches(18)
    expected = reference_sha256(model, data, 3, FUTURE_IN_DEPTH, 3, truth=truth)
    job = job_of(model, data, signal=FUTURE_IN_DEPTH, truth=truth, test=batches(4), evaluate_every=7)
    summary = train(job, stages=3, lag="exact", max_lag=3, run_dir=str(tmp_path / "run"), ledger=True)
    assert summary["weights_sha256"] == expected
    assert [stage["windows"] is not None for stage in summary["stages"]] == [True, True, False]
    assert check_ledgers(Path(tmp_path / "run")) > 0


def test_a_batch_that_is_skipped_leaves_the_state_as_it_was() -> None:
    """Where sequences have no end; else it is one of their windows."""
    model, data = stacked(windows=None), batches(6)
    spoilt = (torch.full_like(data[0][0], torch.nan), data[0][1])
    without, other = deepcopy(model), model
    for each, given in ((without, data), (other, [*data[:2], spoilt, *data[2:]])):
        for _ in Reference(make_stages(cut_model(each, 2), data[0], on_non_finite="skip")).train(given):
            pass
    assert_equal(state([other]), state([without]))


def test_schedules_that_cut_batches_refuse_layers_that_carry_a_state(tmp_path: Path) -> None:
    job = job_of(stacked(), batches(4), signal=FUTURE_IN_DEPTH)
    with pytest.raises(Exception, match="carries its state from batch to batch"):
        train(job, stages=2, schedule="gpipe", microbatches=2, run_dir=str(tmp_path / "run"))
