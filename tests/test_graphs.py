"""Graphs of modules: the uncut graph to the bit wherever they are cut, and what cannot be, said in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from nets import CLASSES, TRUTHS, Batch, adam, assert_equal, cdni, images, make_stages, rows
from torch import Tensor, nn
from torch.nn import functional as F

from stepahead.launch import Job
from stepahead.launch import train as train_with_baseline
from stepahead.pipeline import (
    Activation,
    Conv,
    CutError,
    Earlier,
    Gradient,
    GradientKind,
    Graph,
    Node,
    Recipe,
    Reference,
    SignalRecipe,
    Stage,
    Synthetic,
    Truth,
    UsageError,
    accuracy,
    assemble,
    balance_model,
    cut_model,
    keyed,
    layers_of,
    locked,
    probe,
    silent,
    synthetic,
)
from stepahead.pipeline.parted import Parted
from stepahead.workers import check_ledgers, weights_sha256

train = partial(train_with_baseline, baseline="none")
FEATURES = 12


class Hidden(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs), nn.Tanh())


class Join(nn.Module):
    """Scores of several tensors at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, CLASSES)

    def forward(self, *parts: Tensor) -> Tensor:
        out: Tensor = self.out(torch.cat([part.flatten(1) for part in parts], dim=1))
        return out


class Two(nn.Module):
    """Puts out a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(FEATURES, 6), nn.Linear(FEATURES, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.other(x).tanh()


class Fuse(nn.Module):
    """A convolution over two images."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, deep: Tensor, skipped: Tensor) -> Tensor:
        up = F.interpolate(deep, size=skipped.shape[2:])
        out: Tensor = self.conv(torch.cat([up, skipped], dim=1)).relu()
        return out


def conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def towers() -> Graph:
    return Graph(
        {
            "left": Node(partial(Hidden, FEATURES, 8), "input"),
            "left_top": Node(partial(Hidden, 8, 6), "left"),
            "right": Node(partial(Hidden, FEATURES, 10), "input"),
            "score": Node(partial(Join, 16 + FEATURES), "left_top", "right", "input"),
        }
    )


def pairs() -> Graph:
    """A node with two outputs, which go different ways."""
    return Graph(
        {
            "two": Node(Two, "input"),
            "middle": Node(partial(Hidden, 6, 6), "two:0"),
            "score": Node(partial(Join, 13), "middle", "two:1"),
        }
    )


def unet() -> Graph:
    return Graph(
        {
            "enc1": Node(partial(conv, 2, 4), "input"),
            "pool": Node(partial(nn.MaxPool2d, 2), "enc1"),
            "enc2": Node(partial(conv, 4, 6), "pool"),
            "down": Node(partial(nn.AvgPool2d, 2), "enc2"),
            "deep": Node(partial(conv, 6, 6), "down"),
            "dec2": Node(partial(Fuse, 12, 6), "deep", "enc2"),
            "dec1": Node(partial(Fuse, 10, 4), "dec2", "enc1"),
            "score": Node(partial(Join, 4 * 36), "dec1"),
        }
    )


def two_losses() -> Graph:
    return Graph(
        {
            "body": Node(partial(Hidden, FEATURES, 8), "input"),
            "early": Node(partial(Join, 8), "body"),
            "top": Node(partial(Hidden, 8, 8), "body"),
            "late": Node(partial(Join, 8), "top"),
        },
        outputs=("early", "late"),
    )


class Cell(nn.Module):
    """What came before, and what is new."""

    def __init__(self, inputs: int, before: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs + before, width)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        out: Tensor = self.linear(torch.cat([x, before], dim=1)).tanh()
        return out


def echo(future: SignalRecipe | None = None, windows: int | None = None) -> Graph:
    """A node that uses what it put out a batch ago."""
    return Graph(
        {
            "eye": Node(partial(Hidden, FEATURES, 8), "input"),
            "cell": Node(partial(Cell, 8, 6, 6), "eye", Earlier("cell", 6)),
            "top": Node(partial(Hidden, 6, 8), "cell"),
            "score": Node(partial(Join, 14), "top", "cell"),
        },
        future=future,
        windows=windows,
    )


def talk() -> Graph:
    """Two nodes that answer each other, a batch later."""
    return Graph(
        {
            "eye": Node(partial(Hidden, FEATURES, 8), "input"),
            "ask": Node(partial(Cell, 8, 6, 5), "eye", Earlier("answer", 6)),
            "answer": Node(partial(Cell, 5, 5, 6), "ask", Earlier("ask", 5)),
            "score": Node(partial(Join, 11), "answer", "ask"),
        },
        future=synthetic("mlp", depth=0, optimizer=adam),
    )


def both(outputs: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
    """The loss of a graph with two outputs."""
    early, late = outputs
    return F.cross_entropy(late, label) + 0.3 * F.cross_entropy(early, label)


def late_accuracy(outputs: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
    return accuracy(outputs[1], label)


GRAPHS: dict[str, tuple[Any, Any, list[Batch]]] = {
    "towers": (towers, nn.CrossEntropyLoss(), rows(8)),
    "pairs": (pairs, nn.CrossEntropyLoss(), rows(8)),
    "unet": (unet, nn.CrossEntropyLoss(), images(6)),
    "two losses": (two_losses, both, rows(8)),
    "echo": (echo, nn.CrossEntropyLoss(), rows(8)),
}
CUTS = {"towers": 4, "pairs": 3, "unet": 8, "two losses": 4, "echo": 4}
GUESSED = partial(echo, future=synthetic("mlp", depth=0, optimizer=adam), windows=3)
"""`echo` with a guess of what comes after a batch."""
WITH_GUESSED = {**GRAPHS, "echo, guessed": (GUESSED, nn.CrossEntropyLoss(), rows(8))}


def uncut_weights(graph: Graph, loss: Any, batches: list[Batch], optimizer: Any) -> list[Tensor]:
    """Train the graph as one module, by plain backprop."""
    net = graph.uncut(seed=0)
    adam_of_it = optimizer(net.parameters())
    for x, y in batches:
        adam_of_it.zero_grad()
        loss(net(x), y).backward()
        adam_of_it.step()
    return [weight.detach() for weight in net.parameters()]


def reference(
    graph: Graph, loss: Any, batches: list[Batch], signal: SignalRecipe, stages: int, truth: Truth, lag: int = 1
) -> tuple[Reference, str]:
    groups = cut_model(graph, stages, example=batches[0][0])
    optimizers = [adam if any(True for _ in group.parameters()) else None for group in groups]
    recipe = Recipe(loss=loss, signal=signal, optimizer=optimizers, truth=truth)
    run = Reference(assemble(groups, batches[0], recipe), lag=lag)
    list(run.train(batches))
    return run, weights_sha256(named for group in groups for named in group.named_weights())


@pytest.mark.parametrize(("name", "stages"), [(name, stages) for name in GRAPHS for stages in range(1, CUTS[name] + 1)])
def test_locked_is_plain_backprop_to_the_bit_wherever_it_is_cut(name: str, stages: int) -> None:
    make, loss, batches = GRAPHS[name]
    run, _ = reference(make(), loss, batches, locked, stages, Truth())
    weights = [weight for stage in run.stages for weight in stage.group.parameters()]
    expected = uncut_weights(make(), loss, batches, adam)
    assert len(weights) == len(expected)
    assert all(torch.equal(weight, other) for weight, other in zip(weights, expected, strict=True))


@pytest.mark.parametrize("truth", ["off", "true-up", "stash"])
@pytest.mark.parametrize("name", WITH_GUESSED)
def test_exact_processes_are_the_reference_to_the_bit(name: str, truth: str, tmp_path: Path) -> None:
    make, loss, batches = WITH_GUESSED[name]
    signal, how = synthetic(classes=CLASSES, optimizer=adam), TRUTHS.get(truth, Truth())
    _, expected = reference(make(), loss, batches, signal, 3, how, lag=3)
    more: dict[str, Any] = {} if how.is_late else {"signal": signal}
    job = Job(model=make(), data=batches, loss=loss, optimizer=adam, classes=CLASSES, epochs=1, **more)
    settings: dict[str, Any] = {"truth": how.use} if truth == "off" else {"truth": how.use, "truth_every": how.every}
    run_dir = tmp_path / "run"
    summary = train(job, stages=3, lag="exact", max_lag=3, run_dir=str(run_dir), ledger=True, **settings)
    assert summary["weights_sha256"] == expected
    assert check_ledgers(run_dir)


@pytest.mark.parametrize("name", ["towers", "pairs", "two losses"])
def test_decoupled_graphs_learn(name: str) -> None:
    make, loss, batches = GRAPHS[name]
    run, _ = reference(make(), loss, batches * 30, synthetic(classes=CLASSES, optimizer=adam), 3, Truth())
    quality = run.stages[0].statistics().quality
    assert quality is not None
    assert quality.cosine > 0.2
    assert run.evaluate(batches)["loss"] < 1.2


def test_every_value_that_learns_has_a_guess_that_suits_its_shape() -> None:
    make, loss, batches = GRAPHS["unet"]
    signal = synthetic(classes=CLASSES, optimizer=adam)
    groups = cut_model(make(), at=["enc2", "score"], example=batches[0][0])
    stages = make_stages(groups, batches[0], loss=loss, signal=signal)
    first, second = stages[0].signal, stages[1].signal
    assert isinstance(first, Parted)
    kinds = [type(part.predictor) for part in first.parts if isinstance(part, Synthetic)]
    assert kinds == [Conv, Conv]
    assert isinstance(second, Synthetic), "a value that crosses by itself is as in a chain"


def test_the_raw_input_is_not_guessed_for() -> None:
    make, loss, batches = GRAPHS["towers"]
    run, _ = reference(make(), loss, batches, cdni, 2, Truth())
    bundle = run.stages[0].group.below
    assert bundle is not None
    assert {value.name: value.learns for value in bundle.values} == {"input": False, "left_top": True}
    guess = run.stages[0].signal.gradient(torch.ones(8, FEATURES + 6), batches[0][1])
    assert guess is not None
    assert not guess[:, :FEATURES].any()
    assert guess[:, FEATURES:].any()


@pytest.mark.parametrize("schedule", ["lockstep", "1f1b"])
def test_locked_schedules_run_graphs(schedule: str, tmp_path: Path) -> None:
    make, loss, batches = GRAPHS["two losses"]
    job = Job(
        model=make(), data=batches, test=batches, metrics={"late": late_accuracy}, loss=loss, optimizer=adam, epochs=1
    )
    run_dir = str(tmp_path / "run")
    summary = train(job, stages=2, schedule=schedule, run_dir=run_dir)
    assert summary["steps"] == len(batches)
    assert 0 <= summary["metrics"]["late"] <= 1
    layers = ["body, early", "top, late"]
    assert [stage["layers"] for stage in summary["stages"]] == layers


def test_cut_by_names_and_by_cost() -> None:
    make, _, batches = GRAPHS["unet"]
    groups = cut_model(make(), at=["enc2", "dec1"], example=batches[0][0])
    assert [group.names for group in groups] == [("enc1", "pool"), ("enc2", "down", "deep", "dec2"), ("dec1", "score")]
    assert str(groups[0].below) == "enc1 [4x6x6], pool [4x3x3]"
    balanced = balance_model(make(), 3, batches[0], signal=synthetic(classes=CLASSES, optimizer=adam))
    assert [name for group in balanced for name in group.names] == list(make().nodes)
    assert all(group.names for group in balanced)


def test_nodes_come_behind_those_that_they_use() -> None:
    graph = Graph({"b": Node(nn.Tanh(), "a"), "a": Node(nn.Linear(3, 3), "input"), "c": Node(nn.ReLU(), "b")})
    assert list(graph.nodes) == ["a", "b", "c"]


def test_whole_numbers_cross_with_others_if_they_are_small() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, CLASSES)

        def forward(self, h: Tensor, numbers: Tensor) -> Tensor:
            out: Tensor = self.table(numbers).mean(dim=1) + h
            return out

    class Start(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, CLASSES)

        def forward(self, numbers: Tensor) -> Tensor:
            out: Tensor = self.table(numbers % 50).mean(dim=1)
            return out

    graph = Graph({"start": Node(Start, "input"), "end": Node(Picks, "start", "input")})
    x = torch.randint(50, (8, 3))
    groups = cut_model(graph, 2, example=x)
    assert torch.equal(groups[1](groups[0](x)), graph.uncut()(x))
    with pytest.raises(CutError, match="whole numbers of 16,777,216 and more cannot"):
        groups[0](x + 2**24)


class Masks(nn.Module):
    """Puts out an activation, and where it is to be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x[:, :6] > 0


class InPlace(nn.Module):
    """Changes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, CLASSES)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        h = nn.functional.relu(h, inplace=True)
        out: Tensor = self.out(h * mask)
        return out


@pytest.mark.parametrize("size", [1, 8])
def test_a_mask_crosses_and_what_crossed_may_be_changed_in_place(size: int) -> None:
    graph = Graph({"masks": Node(Masks, "input"), "out": Node(InPlace, "masks:0", "masks:1")})
    batches = rows(4, size=size)
    run, _ = reference(graph, nn.CrossEntropyLoss(), batches, locked, 2, Truth())
    weights = [weight for stage in run.stages for weight in stage.group.parameters()]
    assert_equal(weights, uncut_weights(graph, nn.CrossEntropyLoss(), batches, adam))


class Both(nn.Module):
    """A loss of two outputs that is a module."""

    def forward(self, outputs: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
        return both(outputs, label)


def test_a_loss_of_several_outputs_may_be_a_module(tmp_path: Path) -> None:
    batches = rows(6)
    _, as_function = reference(two_losses(), both, batches, locked, 2, Truth())
    _, as_module = reference(two_losses(), Both(), batches, locked, 2, Truth())
    assert as_module == as_function
    job = Job(model=two_losses(), data=batches, loss=Both(), optimizer=adam, epochs=1)
    assert train(job, stages=2, schedule="1f1b", run_dir=str(tmp_path / "run"))["steps"] == 6


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


class OfDictionary(nn.Module):
    def forward(self, given: dict[str, Tensor]) -> Tensor:
        return given["x"]


class Sums(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class Learns(nn.Module):
    """A loss with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, output: Tensor, label: Tensor) -> Tensor:
        return self.weight * F.cross_entropy(output, label)


def test_what_cannot_be_a_graph_is_one_sentence() -> None:
    plain = nn.Linear(FEATURES, FEATURES)
    wrong: list[tuple[Any, str]] = [
        ({}, "no nodes"),
        ([], "no nodes, or not by name"),
        ({1: Node(plain, "input")}, "cannot be called 1"),
        ({"half": Node(plain, "input")}, "cannot be called 'half': every module has something of that name"),
        ({"a": Node(plain, *cast(Any, [["input"]]))}, r"uses \['input'\], which is no name"),
        ({"a": Node(plain, "input", loss=Learns())}, "the loss of node 'a' has parameters that nothing would train"),
        ({"a": Node(plain)}, "node 'a' is not connected"),
        ({"a": plain}, "node 'a' is a Linear; write Node"),
        ({"input": Node(plain, "input")}, "cannot be called 'input'"),
        ({"a.b": Node(plain, "input")}, "cannot be called 'a.b'"),
        ({"a": Node(plain, "input"), "b": Node(plain, "aa")}, "node 'b' uses 'aa', which is no node; did you mean 'a'"),
        ({"lost": Node(plain, "input"), "b": Node(plain, "input")}, "nothing uses node 'lost'"),
        (
            {"a": Node(Sums(), "input", "c"), "b": Node(plain, "a"), "c": Node(plain, "b")},
            r"nodes a -> b -> c -> a use each other in a circle; .* Earlier\('a', width\)",
        ),
        ({"a": Node(Sums(), "input", Earlier("b", 3))}, "node 'a' uses 'b', which is no node"),
        ({"a": Node(Sums(), "input", Earlier("input", 3))}, "node 'a' uses 'input' of a batch ago"),
        ({"a": Node(Sums(), "input", Earlier("a", cast(Any, "3")))}, r"with the shape \['3'\]; give the sizes of one"),
        (
            {"a": Node(Sums(), "input", Earlier("a", cast(Any, [3])))},
            r"with the shape \[\[3\]\]; give the sizes of one",
        ),
        ({"a": Node(Sums(), "input", Earlier("a"))}, r"with the shape \[\]; give the sizes of one"),
        (
            {"z": Node(plain, "a"), "a": Node(plain, "b"), "b": Node(plain, "a")},
            r"nodes a -> b -> a use each other in a circle; .* Earlier\('a', width\)",
        ),
    ]
    for nodes, words in wrong:
        with pytest.raises(CutError, match=words):
            Graph(nodes)
    with pytest.raises(CutError, match="the graph puts out 'b', which is no node"):
        Graph({"a": Node(plain, "input")}, outputs="b")


def test_what_cannot_cross_a_cut_is_one_sentence() -> None:
    x = torch.randn(8, FEATURES)
    held = Graph({"a": Node(Dictionary(), "input"), "b": Node(OfDictionary(), "a")})
    assert torch.equal(cut_model(held, 1, example=x)[0](x), x)
    with pytest.raises(CutError, match=r"what node 'a' puts out .* cannot cross a cut: it is no tensor with a row"):
        cut_model(held, 2, example=x)
    with pytest.raises(CutError, match="a graph is cut with an example"):
        layers_of(held)
    many = Graph({"two": Node(Two, "input"), "score": Node(partial(Join, 6), "two:2")})
    with pytest.raises(CutError, match="node 'score' uses 'two:2', and node 'two' has no output 2"):
        cut_model(many, 1, example=x)
    half = Graph(
        {"a": Node(nn.Linear(FEATURES, 4), "input"), "b": Node(nn.Linear(4, 4).double(), "c"), "c": Node(Double(), "a"),
         "d": Node(Sums(), "b", "a")}
    )  # fmt: skip
    with pytest.raises(CutError, match=r"a \[4\] \(float32\) and c \[4\] \(float64\) cross one cut"):
        cut_model(half, at=["b"], example=x)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_a_join_that_does_not_fit_names_the_node_and_what_it_was_given() -> None:
    graph = Graph(
        {
            "a": Node(nn.Linear(FEATURES, 4), "input"),
            "b": Node(nn.Linear(FEATURES, 5), "input"),
            "join": Node(Sums(), "a", "b"),
        }
    )
    with pytest.raises(CutError, match=r"node 'join' cannot take a \[8, 4\], b \[8, 5\]: The size of tensor"):
        cut_model(graph, 2, example=torch.randn(8, FEATURES))


def of_its_own() -> Graph:
    """A node with a loss of its own in front of the cut, and nothing that uses it behind."""
    return Graph(
        {
            "body": Node(partial(Hidden, FEATURES, 8), "input"),
            "early": Node(partial(Join, 8), "body", loss=third_of_entropy),
            "top": Node(partial(Hidden, 8, 8), "body"),
            "late": Node(partial(Join, 8), "top"),
        }
    )


def third_of_entropy(output: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(output, label) / 3


def summed_weights(graph: Graph, batches: list[Batch], optimizer: Any) -> list[Tensor]:
    """Train the graph as one module on both losses."""
    net = graph.uncut(seed=0)
    made = optimizer(net.parameters())
    parts = dict(net.named_children())
    for x, y in batches:
        made.zero_grad()
        body = parts["body"](x)
        late = parts["late"](parts["top"](body))
        torch.autograd.backward([F.cross_entropy(late, y), third_of_entropy(parts["early"](body), y)])
        made.step()
    return [weight.detach() for weight in net.parameters()]


@pytest.mark.parametrize("at", [["top"], ["late"], ["early", "late"]])
def test_a_loss_of_a_nodes_own_is_there_at_once(at: list[str]) -> None:
    batches = rows(8)
    groups = cut_model(of_its_own(), at=at, example=batches[0][0])
    stages = make_stages(groups, batches[0])
    list(Reference(stages, lag=1).train(batches))
    weights = [weight for group in groups for weight in group.parameters()]
    for weight, expected in zip(weights, summed_weights(of_its_own(), batches, adam), strict=True):
        torch.testing.assert_close(weight, expected)
    owner = next(stage for stage in stages if "early" in stage.group.names)
    assert owner.loss is not None


def test_it_trains_its_stage_also_where_nothing_else_does() -> None:
    batches = rows(8)
    groups = cut_model(of_its_own(), at=["top"], example=batches[0][0])
    stages = make_stages(groups, batches[0], signal=silent)
    list(Reference(stages, lag=1).train(batches))
    net = of_its_own().uncut(seed=0)
    body, early = (dict(net.named_children())[name] for name in ("body", "early"))
    made = adam([*body.parameters(), *early.parameters()])
    for x, y in batches:
        made.zero_grad()
        third_of_entropy(early(body(x)), y).backward()
        made.step()
    assert_equal(list(groups[0].parameters()), [*body.parameters(), *early.parameters()])
    statistics = stages[0].statistics()
    assert statistics.loss is not None


def test_a_batch_that_is_passed_over_has_no_loss() -> None:
    batches = rows(2)
    groups = cut_model(of_its_own(), at=["top"], example=batches[0][0])
    stage = make_stages(groups, batches[0], signal=silent, on_non_finite="skip")[0]
    for step, x in enumerate([batches[0][0], torch.full_like(batches[1][0], torch.nan)]):
        list(stage.step_ahead(Activation(edge=stage.edge_above, step=step, tensors=(x,), label=batches[step][1])))
        assert (stage.loss is None) == (step == 1)


@pytest.mark.parametrize("relay", ["again", "sum"])
@pytest.mark.parametrize("keep", ["input", "graph"])
def test_a_truth_has_the_losses_of_the_nodes_that_it_comes_through(relay: Any, keep: Any) -> None:
    """What the first stage is told is what autograd says of both losses, at the weights of then."""
    truth = Truth(use="true-up", every=1, relay=relay, keep=keep)
    batches = rows(1)
    groups = cut_model(of_its_own(), at=["early", "late"], example=batches[0][0])
    still = make_stages(groups, batches[0], signal=cdni, truth=truth, optimizer=partial(torch.optim.SGD, lr=0.0))
    told = [message for message in run_once(still, batches[0]) if message.kind is GradientKind.TRUTH]
    x, y = batches[0]
    body = groups[0](x).detach().requires_grad_()
    early, top = (dict(zip(groups[1].names, groups[1].layers, strict=True))[name] for name in ("early", "top"))
    late = groups[2].layers[0]
    total = F.cross_entropy(late(top(body)), y) + third_of_entropy(early(body), y)
    (expected,) = torch.autograd.grad(total, body)
    torch.testing.assert_close(told[-1].tensors[0], expected)


def run_once(stages: Sequence[Stage], batch: Batch) -> list[Gradient]:
    """Send a batch down and what is said of it up, and return all that went up."""
    activation = Activation(edge=stages[0].edge_above, step=0, tensors=(batch[0],), label=batch[1])
    up: list[Gradient] = []
    for stage in stages:
        for message in list(stage.step_ahead(activation)):
            if isinstance(message, Activation):
                activation = message
            else:
                up.append(message)
    for stage in reversed(stages[:-1]):
        due = next(message for message in reversed(up) if message.edge == stage.edge_below)
        up += [message for message in stage.learn(due) if isinstance(message, Gradient)]
    return up


def test_exact_processes_with_a_loss_of_a_nodes_own(tmp_path: Path) -> None:
    batches, truth = rows(9), Truth(use="true-up", every=2)
    groups = cut_model(of_its_own(), 3, example=batches[0][0])
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=cdni, optimizer=adam, truth=truth)
    list(Reference(assemble(groups, batches[0], recipe), lag=3).train(batches))
    expected = weights_sha256(named for group in groups for named in group.named_weights())
    job = Job(model=of_its_own(), data=batches, loss=nn.CrossEntropyLoss(), optimizer=adam, classes=CLASSES, epochs=1,
              signal=cdni, truth=truth)  # fmt: skip
    summary = train(job, stages=3, lag="exact", max_lag=3, run_dir=str(tmp_path / "run"))
    assert summary["weights_sha256"] == expected
    with pytest.raises(UsageError, match="has a loss of its own, and this schedule knows only the one at the end"):
        train(job, stages=2, schedule="1f1b", truth="auto", run_dir=str(tmp_path / "locked"))


def test_a_module_may_be_two_nodes_of_a_stage() -> None:
    twin = nn.Linear(FEATURES, 4)
    graph = Graph({"a": Node(twin, "input"), "b": Node(twin, "input"), "join": Node(Sums(), "a", "b")})
    x = torch.randn(8, FEATURES)
    assert torch.equal(graph.uncut()(x), 2 * twin(x))
    assert torch.equal(cut_model(graph, 1, example=x)[0](x), 2 * twin(x))


def test_outputs_have_the_types_that_they_had() -> None:
    def seen(outputs: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
        assert outputs[1].dtype == torch.bool
        return F.cross_entropy(outputs[0][:, :CLASSES], label)

    batches = rows(2)
    graph = Graph({"masks": Node(Masks, "input")}, outputs=("masks:0", "masks:1"))
    reference(graph, seen, batches, locked, 1, Truth())


def test_a_stage_that_only_its_own_loss_moves_is_trued_up_too() -> None:
    nodes = {
        "left": Node(partial(nn.Linear, FEATURES, CLASSES), "input", loss=F.cross_entropy),
        "right": Node(partial(nn.Linear, FEATURES, CLASSES), "input"),
    }
    for truth in TRUTHS.values():
        reference(Graph(nodes), nn.CrossEntropyLoss(), rows(8), cdni, 2, truth)


def test_signals_that_see_one_tensor_refuse_several() -> None:
    make, loss, batches = GRAPHS["towers"]
    signal = probe(loss=nn.CrossEntropyLoss(), optimizer=adam, classes=CLASSES)
    with pytest.raises(UsageError, match="cross one cut, which suits signals that guess"):
        reference(make(), loss, batches, signal, 2, Truth())


def test_layers_draw_as_they_do_in_the_uncut_graph() -> None:
    x = torch.randn(4, FEATURES)
    with keyed(1, "x", device=torch.device("cpu")):
        whole = towers().uncut(seed=3)
    groups = cut_model(towers(), 4, seed=3, example=x)
    h = x
    for group in groups:
        h = group(h)
    assert torch.equal(h, whole(x))


def test_what_was_earlier_is_carried_until_a_sequence_ends() -> None:
    """Two batches of the same samples differ in what came before; with the third a new sequence begins."""
    net = echo(windows=2).uncut(seed=0)
    x = torch.randn(4, FEATURES)
    first, second, third = net(x), net(x), net(x)
    assert not torch.equal(first, second)
    assert torch.equal(first, third)
    net.reset()
    assert torch.equal(net(x), first)


def test_a_guess_of_what_comes_after_a_batch_reaches_the_batch_before() -> None:
    """The label is of the sample that came before: a node learns to keep it by a guess alone."""
    torch.manual_seed(0)
    y = torch.randint(CLASSES, (400, 16))
    x = F.one_hot(y, FEATURES).float()
    batches = list(zip(x[1:], y[:-1], strict=True))

    def lost(future: SignalRecipe | None) -> float:
        graph = Graph(
            {
                "kept": Node(partial(Cell, FEATURES, 8, 8), "input", Earlier("kept", 8)),
                "score": Node(partial(Join, 8), Earlier("kept", 8)),
            },
            future=future,
        )
        run, _ = reference(graph, nn.CrossEntropyLoss(), batches, locked, 1, Truth())
        return run.evaluate(batches[:50])["loss"]

    assert lost(synthetic("mlp", depth=0, optimizer=adam)) < 0.5 * lost(None)


@pytest.mark.parametrize("truth", ["off", "true-up", "stash"])
def test_nodes_that_answer_each_other_are_one_stage(truth: str, tmp_path: Path) -> None:
    batches, loss = rows(8), nn.CrossEntropyLoss()
    signal, how = synthetic(classes=CLASSES, optimizer=adam), TRUTHS.get(truth, Truth())
    groups = cut_model(talk(), at=["ask", "score"], example=batches[0][0])
    more: dict[str, Any] = {} if how.is_late else {"signal": signal}
    recipe = Recipe(loss=loss, signal=signal, optimizer=adam, truth=how)
    reference = Reference(assemble(groups, batches[0], recipe), lag=3)
    list(reference.train(batches))
    job = Job(model=talk(), data=batches, loss=loss, optimizer=adam, classes=CLASSES, epochs=1, **more)
    settings: dict[str, Any] = {"truth": how.use} if truth == "off" else {"truth": how.use, "truth_every": how.every}
    summary = train(job, cut="ask,score", lag="exact", max_lag=3, run_dir=str(tmp_path / "run"), **settings)
    assert summary["weights_sha256"] == weights_sha256(named for group in groups for named in group.named_weights())
    quality = reference.stages[1].statistics().windows
    assert quality is not None


def test_a_circle_through_time_that_is_cut_or_does_not_fit_is_one_sentence() -> None:
    x = torch.randn(8, FEATURES)
    with pytest.raises(
        CutError, match="node 'ask' uses what 'answer' put out a batch ago, so they cannot be cut apart"
    ):
        cut_model(talk(), at=["answer"], example=x)
    narrow = Graph({"a": Node(partial(Cell, FEATURES, 4, 5), "input", Earlier("a", 4))})
    with pytest.raises(CutError, match=r"'a' is used a batch later with the shape \[4\] .* and is \[8, 5\]"):
        cut_model(narrow, 1, example=x)
    kinds: list[tuple[Any, str]] = [
        (lambda x, before: {"x": x}, "'a' is used a batch later, and is a dict, not a tensor"),
        (lambda x, before: before.long(), "'a' is used a batch later, and is of torch.int64; make it torch.float32"),
    ]
    for function, words in kinds:
        odd = Graph(
            {"a": Node(partial(Calls, function), "input", Earlier("a", 4)), "b": Node(Sums(), "input", "input")}
        )
        with pytest.raises(CutError, match=words):
            cut_model(odd, 1, example=x)
    plain = {"a": Node(nn.Linear(FEATURES, 4), "input")}
    with pytest.raises(CutError, match="the graph was given future, and no node uses what was put out a batch ago"):
        Graph(plain, future=synthetic("mlp", optimizer=adam))
    for windows in (0, 2.5, "3"):
        with pytest.raises(CutError, match=f"a sequence has {windows!r} windows; it must be a whole number"):
            echo(windows=cast(Any, windows))
    with pytest.raises(CutError, match="the future of a graph is a int; give a recipe"):
        echo(future=cast(Any, 7))
    missing = Graph({"a": Node(partial(Cell, FEATURES, 4, 4), "input", Earlier("a:7", 4))})
    with pytest.raises(CutError, match="'a:7' is used a batch later, and node 'a' has no output 7"):
        cut_model(missing, 1, example=x)
    alone = Graph(
        {
            "a": Node(nn.Linear(FEATURES, CLASSES), "input", loss=nn.CrossEntropyLoss()),
            "b": Node(partial(Hidden, 3, 3), Earlier("b", 3)),
            "score": Node(partial(Join, 3), "b"),
        }
    )
    with pytest.raises(CutError, match="nothing crosses a cut before node 'b'; cut elsewhere"):
        cut_model(alone, at=["b"], example=x)


class Calls(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given)


def weights_of(run: Reference) -> list[Tensor]:
    return [weight.detach() for stage in run.stages for weight in stage.group.parameters()]


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("truth", ["off", "true-up"])
def test_what_was_earlier_may_be_changed_in_place(lag: int, truth: str) -> None:
    def graph(inplace: bool) -> Graph:
        return Graph(
            {
                "bent": Node(partial(nn.ReLU, inplace=inplace), Earlier("cell", 6)),
                "cell": Node(partial(Cell, FEATURES, 6, 6), "input", "bent"),
                "score": Node(partial(Join, 6), "cell"),
            }
        )

    def trained(inplace: bool) -> list[Tensor]:
        groups = cut_model(graph(inplace), at=["score"], example=rows(1)[0][0])
        torch.manual_seed(0)
        batches = rows(12)
        signal = synthetic(classes=CLASSES, optimizer=adam)
        recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=signal, optimizer=adam, truth=TRUTHS.get(truth, Truth()))
        run = Reference(assemble(groups, batches[0], recipe), lag=lag)
        list(run.train(batches))
        return weights_of(run)

    assert all(torch.equal(one, other) for one, other in zip(trained(True), trained(False), strict=True))


def test_a_gradient_reaches_what_was_earlier_through_nodes_that_learn_nothing() -> None:
    """Such a value was taken for one that no gradient is of use to, when it crossed a cut."""

    def graph() -> Graph:
        return Graph(
            {
                "cell": Node(partial(Cell, FEATURES, 6, 6), "input", Earlier("cell", 6)),
                "old": Node(nn.Identity, Earlier("cell", 6)),
                "new": Node(nn.Identity, "cell"),
                "score": Node(partial(Join, 12), "old", "new"),
            },
            future=synthetic("mlp", depth=0, optimizer=adam),
        )

    def trained(at: list[str | int]) -> list[Tensor]:
        torch.manual_seed(0)
        batches = rows(20)
        groups = (
            cut_model(graph(), at=at, example=batches[0][0]) if at else cut_model(graph(), 1, example=batches[0][0])
        )
        run = Reference(assemble(groups, batches[0], Recipe(loss=nn.CrossEntropyLoss(), signal=locked, optimizer=adam)))
        list(run.train(batches))
        return weights_of(run)

    assert all(torch.equal(one, other) for one, other in zip(trained([]), trained(["score"]), strict=True))


def states_seen(graph: Graph, batches: list[Batch], **more: Any) -> list[bool]:
    """Return of each batch whether a new sequence began with it, in a run of one stage."""
    (group,) = cut_model(graph, 1, example=batches[0][0])
    cell, seen = group.layers[list(group.names).index("cell")], list[bool]()
    cell.register_forward_hook(lambda module, given, out: seen.append(not given[1].any()))
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=locked, optimizer=adam, **more)
    run = Reference(assemble([group], batches[0], recipe))
    seen.clear()
    list(run.train(batches))
    return seen


def test_a_batch_that_is_passed_over_is_a_window_of_its_sequence() -> None:
    batches = rows(6)
    batches[1][0][:] = float("nan")
    assert states_seen(echo(windows=2), batches, on_non_finite="skip") == [True, False] * 3


class Noted(nn.Module):
    """Sees what the score does not."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 6:].tanh()


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        out: Tensor = self.linear(torch.cat([x[:, :6], before], dim=1)).tanh()
        return out


def test_a_state_that_is_not_finite_is_not_carried_on() -> None:
    graph = Graph(
        {
            "note": Node(Noted, "input"),
            "top": Node(Blind, "input", Earlier("note", 6)),
            "score": Node(partial(Join, 6), "top"),
        }
    )
    batches = rows(6)
    batches[1][0][:, 8] = float("nan")
    groups = cut_model(graph, 1, example=batches[0][0])
    recipe = Recipe(loss=nn.CrossEntropyLoss(), signal=locked, optimizer=adam, on_non_finite="skip")
    run = Reference(assemble(groups, batches[0], recipe))
    list(run.train(batches))
    assert run.stages[0].skipped == 1


def test_what_is_used_does_not_remember_after_a_reset() -> None:
    net = echo().uncut().eval()
    x = torch.randn(4, FEATURES)
    first = net(x)
    assert not torch.equal(first, net(x))
    net.reset()
    assert torch.equal(first, net(x))
    net(x[:2])  # other samples, a new sequence


def test_circles_are_kept_whole_by_every_way_to_cut() -> None:
    batches = rows(1)
    by_count = cut_model(talk(), 3, example=batches[0][0])
    by_cost = balance_model(talk(), 3, batches[0])
    assert [group.names for group in by_count] == [group.names for group in by_cost]
    assert by_count[1].names == ("ask", "answer")
    with pytest.raises(CutError, match="cannot cut 4 layers into 4 stages; some hang together, so use at most 3"):
        cut_model(talk(), 4, example=batches[0][0])


def test_a_shorter_last_batch_of_a_test_begins_new_sequences(tmp_path: Path) -> None:
    batches = rows(6)
    test = [batches[0], (batches[1][0][:3], batches[1][1][:3])]
    job = Job(
        model=talk(), data=batches, test=test, loss=nn.CrossEntropyLoss(), optimizer=adam, classes=CLASSES, epochs=1
    )
    summary = train(job, stages=2, run_dir=str(tmp_path / "run"))
    assert "loss" in summary["metrics"]
