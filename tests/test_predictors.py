"""The networks that guess gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from nets import CLASSES, adam
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam

from stepahead.pipeline import Conv, Linear, Synthetic, Token, UsageError, make_predictor
from stepahead.pipeline.guessing import LabelTable, Predictor
from stepahead.pipeline.predictors import Critic

ROWS, PLACES, IMAGES = (6, 8), (6, 5, 8), (6, 3, 4, 4)
KINDS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("linear", ROWS, {}),
    ("linear", PLACES, {}),
    ("low-rank", ROWS, {"rank": 2}),
    ("low-rank", PLACES, {}),
    ("mlp", ROWS, {}),
    ("mlp", ROWS, {"depth": 2, "hidden": 20, "norm": "batch"}),
    ("mlp", ROWS, {"depth": 0}),
    ("mlp", PLACES, {"norm": "batch"}),
    ("conv", IMAGES, {}),
    ("conv", IMAGES, {"depth": 0, "kernel": 3}),
    ("conv", IMAGES, {"depth": 2, "hidden": 7}),
    ("softmax", ROWS, {}),
    ("softmax", PLACES, {}),
    ("softmax", IMAGES, {}),
    ("whole", IMAGES, {}),
    ("whole", ROWS, {"hidden": 5}),
    ("token", PLACES, {}),
    ("token", PLACES, {"ahead": 2, "hidden": 12}),
    ("critic", ROWS, {}),
    ("critic", PLACES, {"hidden": 12}),
]
WITH_AND_WITHOUT = [
    pytest.param(*case, classes, id=f"{case[0]}{index}-{'label' if classes else 'none'}")
    for index, case in enumerate(KINDS)
    for classes in (CLASSES, None)
    if classes or case[0] != "softmax"  # which compares with the label
]
each_kind = pytest.mark.parametrize(("kind", "shape", "options"), KINDS)
with_and_without = pytest.mark.parametrize("classes", [CLASSES, None], ids=["label", "no-label"])


def label_for(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(CLASSES, shape[:2] if len(shape) == 3 else shape[:1])


def shake(predictor: Predictor) -> Predictor:
    """Move every weight away from where it was born."""
    for parameter in predictor.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return predictor


@pytest.mark.parametrize(("kind", "shape", "options", "classes"), WITH_AND_WITHOUT)
def test_starts_at_zero_and_learns(
    kind: str, shape: tuple[int, ...], options: dict[str, Any], classes: int | None
) -> None:
    """A newborn predicts zero; taught one batch again and again, it comes near the gradient, by all its weights."""
    h, y = torch.randn(shape), label_for(shape)
    features = 1 if len(shape) == 4 else -1
    target = (h.movedim(features, -1) @ torch.randn(shape[features], 1) @ torch.randn(1, shape[features])).movedim(
        -1, features
    )
    predictor = make_predictor(kind, h, classes=classes, **options)
    assert not predictor(h, y if classes else None).any()
    before = [parameter.clone() for parameter in predictor.parameters()]
    optimizer = Adam(predictor.parameters(), lr=1e-2)
    loss = torch.tensor(torch.inf)
    for _ in range(400):
        loss = (predictor(h, y if classes else None) - target).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5 * target.square().mean()
    assert all(not torch.equal(a, b) for a, b in zip(before, predictor.parameters(), strict=True))


@each_kind
def test_the_label_counts(kind: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    h = torch.randn(shape)
    y = label_for(shape)
    predictor = shake(make_predictor(kind, h, classes=CLASSES, **options))
    assert not torch.allclose(predictor(h, y), predictor(h, (y + 1) % CLASSES))


@each_kind
def test_one_label_for_a_whole_sequence(kind: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    h, y = torch.randn(shape), torch.randint(CLASSES, shape[:1])
    predictor = shake(make_predictor(kind, h, classes=CLASSES, **options))
    spread = y.unsqueeze(1).expand(shape[:2]) if len(shape) == 3 else y
    assert torch.equal(predictor(h, y), predictor(h, spread))


@each_kind
def test_a_label_as_a_vector_is_a_one_hot_label(kind: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    h, y = torch.randn(shape), label_for(shape)
    predictor = shake(make_predictor(kind, h, classes=CLASSES, **options))
    assert torch.allclose(predictor(h, y), predictor(h, F.one_hot(y, CLASSES).float()), atol=1e-6)


def test_linear_with_a_label_is_linear_on_the_label_beside() -> None:
    """Paper A concatenates a one-hot label; a table of rows is the same map."""
    predictor = shake(Linear(8, classes=CLASSES))
    h, y = torch.randn(6, 8), torch.randint(CLASSES, (6,))
    weights = predictor.state_dict()
    weight = torch.cat([weights["out.weight"], weights["label.weight"][:CLASSES].t()], dim=1)
    beside = torch.cat([h, F.one_hot(y, CLASSES).float()], dim=1)
    assert torch.allclose(predictor(h, y), F.linear(beside, weight, weights["out.bias"]), atol=1e-6)


def test_conv_sees_the_label_as_planes() -> None:
    predictor = shake(Conv(3, 4, depth=0, kernel=1, classes=CLASSES))
    weights = predictor.state_dict()
    h, y = torch.zeros(2, 3, 4, 4), torch.tensor([1, 3])
    column = weights["out.weight"][:, 3:, 0, 0].t()[y] + weights["out.bias"]
    assert torch.allclose(predictor(h, y), column[:, :, None, None].expand(2, 3, 4, 4))


def test_softmax_is_the_gradient_at_a_classifiers_input() -> None:
    h, y = torch.randn(ROWS), label_for(ROWS)
    weight, bias = torch.randn(CLASSES, ROWS[1]), torch.randn(CLASSES)
    at = h.clone().requires_grad_()
    (true,) = torch.autograd.grad(F.cross_entropy(at @ weight.T + bias, y, reduction="sum"), at)
    predictor = make_predictor("softmax", h, classes=CLASSES)
    predictor.load_state_dict(
        {"scores.weight": weight, "scores.bias": bias, "out.weight": weight.T, "out.bias": torch.zeros(ROWS[1])}
    )
    torch.testing.assert_close(predictor(h, y), true)


def test_softmax_of_a_place_that_the_loss_ignores_is_none() -> None:
    h, y = torch.randn(PLACES), label_for(PLACES)
    predictor = shake(make_predictor("softmax", h, classes=CLASSES))
    predictor.load_state_dict({**predictor.state_dict(), "out.bias": torch.zeros(PLACES[2])})
    of_all = predictor(h, y)
    y[:, 2] = -100
    guess = predictor(h, y)
    assert not guess[:, 2].any()
    assert torch.equal(guess[:, 3:], of_all[:, 3:])
    by_sample, by_place = predictor(h, y[:, 0]), predictor(h, y[:, :1].expand(-1, PLACES[1]))
    assert torch.equal(by_sample, by_place)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_softmax_takes_labels_of_any_whole_type(dtype: torch.dtype) -> None:
    h, y = torch.randn(ROWS), torch.randint(2, ROWS[:1])
    predictor = shake(make_predictor("softmax", h, classes=2))
    assert torch.equal(predictor(h, y.to(dtype)), predictor(h, y))


def test_softmax_needs_labels_that_it_can_compare_with() -> None:
    with pytest.raises(UsageError, match="give the number of classes"):
        make_predictor("softmax", torch.randn(ROWS))
    predictor = make_predictor("softmax", torch.randn(IMAGES), classes=CLASSES)
    with pytest.raises(UsageError, match=r"one label for each sample or place, not \[6, 4, 4\]"):
        predictor(torch.randn(IMAGES), torch.zeros(6, 4, 4, dtype=torch.long))


def test_whole_knows_places_apart() -> None:
    """A gradient that is the same for all images of a class, and another at each place: no convolution has it."""
    h, y = torch.randn(IMAGES), torch.randint(CLASSES, IMAGES[:1])
    target = torch.randn(CLASSES, *IMAGES[1:])[y]
    predictor = make_predictor("whole", h, classes=CLASSES)
    optimizer = SGD(predictor.parameters(), lr=0.1)
    for _ in range(300):
        torch.autograd.backward((predictor(h, y) - target).square().sum() / len(h))
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(predictor(h, y), target, atol=0.01, rtol=0.01)


def test_whole_refuses_a_label_for_each_pixel() -> None:
    predictor = make_predictor("whole", torch.randn(IMAGES), classes=CLASSES)
    with pytest.raises(UsageError, match=r"takes one label for each sample, not \[6, 4, 4\]"):
        predictor(torch.randn(IMAGES), torch.zeros(6, 4, 4, dtype=torch.long))


def test_conv_takes_a_label_for_each_pixel() -> None:
    predictor = shake(make_predictor("conv", torch.randn(IMAGES), classes=CLASSES))
    whole = torch.randint(CLASSES, (6,))
    each = whole[:, None, None].expand(6, 4, 4)
    h = torch.randn(IMAGES)
    assert torch.allclose(predictor(h, whole), predictor(h, each))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_token_predictor_looks_ahead_and_nowhere_else(ahead: int) -> None:
    predictor = shake(Token(4, 6, ahead=ahead, classes=CLASSES))
    h, y = torch.randn(1, 8, 4), torch.randint(CLASSES, (1, 8))
    before = predictor(h, y)
    for place in range(8):
        changed = y.clone()
        changed[0, place] = (y[0, place] + 1) % CLASSES
        moved = (predictor(h, changed) != before).any(dim=2)[0].nonzero().flatten().tolist()
        assert moved == list(range(max(0, place - ahead), place + 1))


def test_an_ignored_label_adds_nothing_and_teaches_nothing() -> None:
    table = LabelTable(CLASSES, 4)
    h = torch.randn(3, 4)
    out = table(h, torch.tensor([-100, 2, -100]))
    assert torch.equal(out[0], h[0])
    assert not torch.equal(out[1], h[1])
    torch.autograd.backward(out.sum())
    assert table.weight.grad is not None
    assert table.weight.grad.sum(dim=1).tolist() == [0, 0, 4, 0, 0, 0]


@pytest.mark.parametrize(("shape", "kind"), [(ROWS, "Linear"), (PLACES, "Token"), (IMAGES, "Conv")])
def test_auto_goes_by_the_shape(shape: tuple[int, ...], kind: str) -> None:
    assert type(make_predictor("auto", torch.randn(shape))).__name__ == kind


def signal(predictor: Predictor, **options: Any) -> Synthetic:
    return Synthetic(predictor, partial(SGD, lr=0.01), **options)


def test_the_gradient_does_not_depend_on_the_batch_size() -> None:
    """The predictor knows the gradient of one sample; a mean over more samples makes each one's share smaller."""
    synthetic = signal(shake(Linear(8, classes=CLASSES)))
    h, y = torch.randn(6, 8), torch.randint(CLASSES, (6,))
    assert torch.allclose(synthetic.gradient(h, y)[:3] * 6, synthetic.gradient(h[:3], y[:3]) * 3)
    places = signal(shake(Token(8, 8, classes=CLASSES)))
    h, y = torch.randn(PLACES), label_for(PLACES)
    assert torch.allclose(places.gradient(h, y) * 30, places.predictor(h, y))
    summed = signal(shake(Linear(8)), loss_is_mean=False)
    assert torch.allclose(summed.gradient(h, None), summed.predictor(h))


def test_what_is_learnt_is_the_gradient_of_one_sample() -> None:
    synthetic = Synthetic(Linear(8), adam)
    h = torch.randn(64, 8)
    truth = (h @ torch.randn(8, 8)) / 64
    for step in range(2000):
        synthetic.learn(h, None, truth, step)
    assert torch.allclose(synthetic.gradient(h, None), truth, atol=1e-4)
    assert torch.allclose(synthetic.predictor(h), 64 * truth, atol=1e-2)
    assert synthetic.quality is not None
    assert synthetic.quality.cosine > 0.999


def test_learning_on_some_rows_takes_turns_over_all() -> None:
    synthetic = signal(Linear(2), rows=0.25)
    h, delta = torch.randn(8, 2), torch.randn(8, 2)
    for turn in range(5):
        fresh = signal(Linear(2))
        fresh.load_state_dict(synthetic.state_dict())
        synthetic.learn(h, None, delta, turn)
        rows = slice(turn % 4, None, 4)
        fresh.learn(h[rows], None, delta[rows] * 8 / 2, 0)
        assert torch.allclose(
            synthetic.predictor.state_dict()["out.weight"], fresh.predictor.state_dict()["out.weight"]
        )


def test_learning_every_nth_batch() -> None:
    synthetic = signal(Linear(2), every=3)
    assert [step for step in range(10) if synthetic.wants(step)] == [0, 3, 6, 9]


def test_a_batch_shorter_than_its_turn_is_left_out() -> None:
    synthetic = signal(Linear(2), rows=0.25)
    synthetic.learn(torch.randn(2, 2), None, torch.randn(2, 2), step=3)
    assert synthetic.quality is None


def test_half_precision_activations() -> None:
    synthetic = signal(shake(Linear(8, classes=CLASSES)))
    h, y = torch.randn(6, 8, dtype=torch.bfloat16), torch.randint(CLASSES, (6,))
    assert synthetic.gradient(h, y).dtype == torch.bfloat16
    synthetic.learn(h, y, torch.randn(6, 8, dtype=torch.bfloat16), 0)
    assert synthetic.predictor.state_dict()["out.weight"].dtype == torch.float32


@with_and_without
def test_a_critic_is_the_slope_of_a_number(classes: int | None) -> None:
    """How its guess changes with h is symmetric, which a network that makes vectors need not be."""
    h, y = torch.randn(1, 8, dtype=torch.float64), torch.tensor([1])
    label = y if classes else None
    for kind, symmetric in (("critic", True), ("mlp", False)):
        predictor = shake(make_predictor(kind, h.float(), classes=classes)).double()
        jacobian = torch.autograd.functional.jacobian(partial(_guess, predictor, label), h)
        curl = jacobian.view(8, 8) - jacobian.view(8, 8).T
        assert (curl.abs().max() < 1e-9) == symmetric


def _guess(predictor: Predictor, label: Tensor | None, h: Tensor) -> Tensor:
    if not isinstance(predictor, Critic):
        return predictor(h, label)  # type: ignore[no-any-return]
    (slope,) = torch.autograd.grad(predictor.value(h, label), h, create_graph=True)
    return slope


def test_a_critic_guesses_without_a_graph() -> None:
    h, y = torch.randn(4, 8), torch.arange(4)
    critic = shake(make_predictor("critic", h, classes=CLASSES))
    with torch.no_grad():
        assert not critic(h, y).requires_grad
    assert critic(h, y).requires_grad
    assert not h.requires_grad
