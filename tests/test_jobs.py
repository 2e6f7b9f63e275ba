"""The built-in jobs, and the examples to copy."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from test_datasets import write_cifar, write_mnist
from torch import Tensor

from stepahead.launch.config import Config
from stepahead.launch.job import BUILT_IN, Job, load_job
from stepahead.launch.job_chars import prose, share_of_rate, windows
from stepahead.launch.plan import make_plan
from stepahead.pipeline import (
    Activation,
    Batch,
    Reference,
    UsageError,
    assemble,
    cut_model,
    layers_of,
)
from stepahead.workers import Feed

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL: dict[str, dict[str, Any]] = {
    "digits": {"width": 32, "batch": 120, "blocks": 4, "steps": 200},
    "chars": {"width": 32, "heads": 2, "blocks": 2, "window": 16, "batch": 16, "steps": 120, "learning_rate": 5e-3},
}


def fed(job: Job, count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return the first batches that a run's feed would send."""
    batches: list[tuple[Tensor, Tensor]] = []
    for message in Feed(train=job.data, steps=count, seed=seed).messages():
        if isinstance(message, Activation) and message.training:
            assert message.label is not None
            batches.append((message.tensors[0], message.label))
    return batches


def batches_to_test(job: Job) -> list[Batch]:
    assert job.test is not None
    return list(job.test(0) if callable(job.test) else job.test)


def make(job: Job, stages: int, example: Batch) -> Reference:
    """As the launcher does."""
    recipe = make_plan(Config(stages=stages, device="cpu"), job).work(0).recipe
    return Reference(assemble(cut_model(job.model, stages, example=example[0]), example, recipe))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_job_learns_decoupled(name: str) -> None:
    job = load_job(name, SMALL[name])
    assert job.name == name
    assert job.steps
    batches = fed(job, job.steps)
    reference = make(job, 3, batches[0])
    before = reference.evaluate(batches_to_test(job)[:4], job.metrics)
    for _ in reference.train(batches):
        pass
    after = reference.evaluate(batches_to_test(job)[:4], job.metrics)
    assert after["loss"] < 0.75 * before["loss"]
    assert after["accuracy"] > {"digits": 0.85, "chars": 0.25}[name]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_job_is_the_same_in_every_process(name: str) -> None:
    left, right = (fed(load_job(name, SMALL[name], seed=3), 30, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(chain(*left), chain(*right), strict=True))
    other = fed(load_job(name, SMALL[name], seed=4), 1, seed=4)
    assert not torch.equal(left[0][0], other[0][0])


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_job_shuffles_by_the_epoch(name: str) -> None:
    job = load_job(name, SMALL[name])
    assert callable(job.data)
    first, again, second = (next(iter(job.data(epoch)))[0] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_digits_has_many_cut_points_and_equal_layers() -> None:
    layers = layers_of(load_job("digits").model)
    assert len(layers) - 1 >= 33
    weights = [sum(weight.numel() for weight in layer.build(0).parameters()) for layer in layers]
    assert len(set(weights[1:-1])) == 1
    assert max(weights) < 1.6 * min(weights)


def test_options_are_used() -> None:
    digits = load_job("digits", {"width": 16, "blocks": 5, "batch": 32, "steps": 16})
    assert (len(layers_of(digits.model)), digits.steps, digits.evaluate_every) == (5, 16, 2)
    assert fed(digits, 1)[0][0].shape == (32, 64)
    chars = load_job("chars", {"width": 8, "heads": 2, "blocks": 3, "window": 5, "batch": 7, "steps": 10})
    assert (len(layers_of(chars.model)), chars.steps, chars.evaluate_every) == (6, 10, 2)
    assert fed(chars, 1)[0][0].shape == (7, 5)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("digits", {"blocks": 1}, "the job's blocks is 1; it must be at least 2"),
        ("digits", {"batch": 0}, "the job's batch is 0; it must be at least 2"),
        ("chars", {"heads": 0}, "the job's heads is 0; it must be at least 1"),
        ("chars", {"width": 90}, "width 90 does not divide into 4 heads; make it a multiple"),
        ("chars", {"window": 10**6}, "a window of 1000000 does not fit into the test text; use less than"),
    ],
)
def test_options_that_do_not_suit(name: str, options: dict[str, int], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load_job(name, options)


def test_the_prose_is_split_and_nothing_is_lost() -> None:
    text = prose()
    alphabet, train, test = text.alphabet, text.train, text.test
    assert len(test) == pytest.approx(0.1 * (len(train) + len(test)), abs=1)
    assert int(torch.cat([train, test]).max()) < len(alphabet)
    assert "The" in "".join(alphabet[int(number)] for number in train[:5000])


def test_windows_tell_what_follows() -> None:
    (x, y), (last_x, _) = windows(torch.arange(13), 4, 2)
    assert y is not None
    assert x.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert torch.equal(y, x + 1)
    assert last_x.tolist() == [[8, 9, 10, 11]]


def test_an_epoch_of_windows_is_whole_batches() -> None:
    """Or a schedule that cuts batches ends with the epoch."""
    batches = list(windows(torch.arange(15), 4, 2, torch.Generator().manual_seed(0)))
    assert [len(x) for x, _ in batches] == [2, 2]
    assert len({tuple(row) for x, _ in batches for row in x.tolist()}) == 3


def test_the_learning_rate_rises_falls_and_stays() -> None:
    assert [round(share_of_rate(1000, step), 2) for step in (0, 49, 100, 550, 1000, 5000)] == [
        *(0.01, 0.5, 1.0),
        *(0.55, 0.1, 0.1),
    ]


def test_a_place_sees_only_those_before_it() -> None:
    job = load_job("chars", SMALL["chars"])
    (group,) = cut_model(job.model, 1)
    x = torch.randint(10, (1, 16))
    changed = x.clone()
    changed[0, 9] += 1
    same = (group(x) == group(changed)).all(dim=2)
    assert same[0, :9].all()
    assert not same[0, 9:].any()


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    write_mnist(tmp_path, side=28)
    return tmp_path


@pytest.fixture
def cifar_folder(tmp_path: Path) -> Path:
    write_cifar(tmp_path)
    return tmp_path


def check_example(name: str, **options: Any) -> None:
    job = load_job(str(EXAMPLES / name), options)
    batches = fed(job, 3)
    reference = make(job, job.stages, batches[0])
    assert all(report.loss > 0 for report in reference.train(batches))
    figures = reference.evaluate(islice(batches_to_test(job), 1), job.metrics)
    assert set(figures) == {"loss", *job.metrics}
    assert all(0 <= figures[name] <= (8 if name == "bits" else 1) for name in job.metrics)


def test_the_mlp_on_mnist(mnist_folder: Path) -> None:
    check_example("mnist_mlp.py", data=str(mnist_folder), width=8, batch=2)


def test_the_cnn_on_cifar(cifar_folder: Path) -> None:
    check_example("cifar_cnn.py", data=str(cifar_folder), width=4, batch=4)


def test_a_dataset_of_ones_own() -> None:
    check_example("own_dataset.py", points=200, width=8)


def test_stacked_lstms_on_a_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be, " * 100)
    check_example("recurrent_chars.py", file=str(tmp_path / "text.txt"), width=8, layers=2, batch=2)


@pytest.mark.parametrize("name", ["two_towers.py", "unet.py"])
def test_graphs(name: str) -> None:
    check_example(name, batch=16)


def test_two_networks_at_two_rates() -> None:
    job = load_job(str(EXAMPLES / "two_clocks.py"), {"width": 8, "batch": 4, "sequences": 2})
    batches = fed(job, 8)
    groups = cut_model(job.model, at=["slow"], example=batches[0][0])
    recipe = make_plan(Config(stages=2, device="cpu", cut="slow"), job).work(0).recipe
    reference = Reference(assemble(groups, batches[0], recipe))
    assert all(report.loss > 0 for report in reference.train(batches))
    assert all(stage.loss is not None for stage in reference.stages)
    figures = reference.evaluate(batches_to_test(job), job.metrics)
    assert all(0 <= figures[name] <= 1 for name in job.metrics)
