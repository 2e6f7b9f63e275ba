"""The papers' experiments: their lists of trials, their tables, and the small ones that are over in a moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks.papers import choices
from benchmarks.papers.__main__ import ENTRIES
from benchmarks.papers.choices import held_back
from benchmarks.papers.depth import look_inside
from benchmarks.papers.entry import Budget, Results, Trial, Unfinished
from benchmarks.papers.nets import Layers, cnn, fcn
from benchmarks.papers.recurrent import COPYING, Size
from benchmarks.papers.theory import KINDS, descend, sample
from benchmarks.papers.training import METHODS, Course, Setting, train
from stepahead.launch import Dataset
from stepahead.pipeline import StepReport, cut_model

SHORT = Budget(full=False, data=Path("nowhere"))


def drawn(name: str, results: Mapping[str, Any]) -> str:
    console = Console(width=250, file=StringIO())
    console.print(ENTRIES[name].table(results))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("full", [False, True])
def test_trials_have_names_of_their_own(name: str, full: bool) -> None:
    keys = [trial.key for trial in ENTRIES[name].trials(full)]
    assert keys
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ENTRIES)
def test_what_was_measured_is_of_trials_that_there_are(name: str) -> None:
    found = Results(name, "quick").read()
    assert set(found) <= {trial.key for trial in ENTRIES[name].trials(False)}
    if found:
        assert len(drawn(name, found).splitlines()) > 2


@pytest.mark.parametrize("name", ["copy", "repeat-copy"])
def test_what_was_copied_was_copied_in_as_many_batches(name: str) -> None:
    """A line that is there is not run again, so it must go when the size of a run changes."""
    assert {line["batches"] for line in Results(name, "quick").read().values()} == {COPYING.batches}


def test_the_inside_of_a_net_is_looked_at_layer_by_layer() -> None:
    """It took a group's list of layers for a layer, when the first net had been trained."""
    groups = cut_model(fcn(4, inputs=6, width=8), at=[2])
    data = Dataset((torch.randn(50, 6), torch.randint(10, (50,))), (torch.randn(40, 6), torch.randint(10, (40,))))
    found = look_inside(groups, data)
    assert [len(found[name]) for name in ("likeness", "step", "probe", "norms")] == [3, 2, 3, 4]
    assert found["likeness"][-1] == 1.0
    assert all(0 <= error <= 100 for error in found["probe"])


def test_a_trial_is_run_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def run(budget: Budget, title: str) -> dict[str, float]:
        calls.append(title)
        return {"figure": 1.5}

    results = Results("some", "quick", tmp_path)
    results.run(Trial("first", run), SHORT, "some 1 of 1: first")
    assert calls == ["some 1 of 1: first"]
    assert results.read()["first"]["figure"] == 1.5
    assert set(results.read()) == {"first"}


@pytest.mark.parametrize(
    ("layers", "shape"), [(fcn(3, inputs=20, width=8), (20,)), (cnn(3, 4, 8), (1, 8, 8))], ids=["linear", "conv"]
)
@pytest.mark.parametrize("method", ["backprop", "no backprop"])
def test_training_gives_errors_all_along(layers: Layers, shape: tuple[int, ...], method: str) -> None:
    x, y = torch.randn(200, *shape), torch.arange(200) % 10
    setting = Setting(layers=layers, method=METHODS[method], course=Course(40, 1e-3, 20))
    made = train(setting, Dataset((x, y), (x, y)), SHORT, "a test")
    assert [step for step, _ in made["curve"]] == list(range(1, 41))
    assert 0 <= made["test_error"] <= 100
    assert made["quality"][-1] == []


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_broken_off_goes_on_from_where_it_was(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.papers.entry.SAVED_EVERY", 0.0)
    x, y = torch.randn(200, 20), torch.arange(200) % 10
    setting = Setting(layers=fcn(3, 20, 8), method=METHODS[method], course=Course(40, 1e-3, 20), chance=0.8)
    data, budget = Dataset((x, y), (x, y)), Budget(False, Path("nowhere"), Unfinished(tmp_path / "some.unfinished"))
    whole = train(setting, data, SHORT, "a test")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.papers.training.Track", partial(_broken_off, 25))
        with pytest.raises(KeyboardInterrupt):
            train(setting, data, budget, "a test")
    assert budget.unfinished.file is not None
    assert budget.unfinished.file.exists()
    longer = replace(setting, course=Course(60, 1e-3, 20))
    assert train(longer, data, budget, "a test")["steps"] == 60, "it was saved of another course"
    assert train(setting, data, budget, "a test") == whole


@pytest.mark.parametrize(("name", "size"), [("copy", "COPYING"), ("characters", "TEXT")])
def test_a_recurrent_run_that_is_broken_off_goes_on_from_where_it_was(
    name: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.papers.entry.SAVED_EVERY", 0.0)
    small = Size(hidden=16, batch=8, batches=40, rate=1e-2, guess_rate=1e-2)
    monkeypatch.setattr(f"benchmarks.papers.recurrent.{size}", small)
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 2000)
    trial = next(trial for trial in ENTRIES[name].trials(False) if trial.key.startswith("DNI+Aux"))
    budget = Budget(False, text, Unfinished(tmp_path / "some.unfinished"))
    whole = trial.run(Budget(False, text), "a test")
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.papers.recurrent.Track", partial(_broken_off, 25))
        with pytest.raises(KeyboardInterrupt):
            trial.run(budget, "a test")
    torch.manual_seed(7)
    again = trial.run(budget, "a test")
    if name == "copy":
        assert again == whole
    else:  # what the guess was to learn from the last window is not saved
        assert len(again["curve"]) == len(whole["curve"])
        assert again["curve"][:12] == whole["curve"][:12]
        assert again["bits"] == pytest.approx(whole["bits"], rel=0.01)


def _broken_off(at: int, reports: Iterable[StepReport], **_: object) -> Iterator[StepReport]:
    for report in reports:
        if report.step == at:
            raise KeyboardInterrupt
        yield report


def test_the_spurious_equilibrium_stands_still() -> None:
    trials = {trial.key: trial for trial in ENTRIES["theory"].trials(False)}
    made = trials["spurious equilibrium"].run(SHORT, "")
    assert made["moved"] == [0.0, 0.0, 0.0]
    assert made["true slope"] == 6.0


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_sets_are_what_they_are_called(kind: str) -> None:
    x, y = sample(kind, 2, 3)
    assert x.shape == (3, 100, 2)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    given = torch.cat([x, torch.ones(3, 100, 1)], dim=2)
    fitted = given @ torch.linalg.lstsq(given, 2 * y - 1).solution
    missed = ((fitted > 0).float() != y).float().mean()
    assert (missed < 0.08) == (kind == "separable")


def test_a_guess_is_followed_to_where_backprop_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short stretch of the toy: linear net, squares; the full table is in docs/papers.md."""
    monkeypatch.setattr("benchmarks.papers.theory.LONG", 3000)
    theirs = descend("noisy", 2, "mse", 0, "", SHORT, "")["losses"]
    ours = descend("noisy", 2, "mse", 0, "linear", SHORT, "")["losses"]
    assert max(a - b for a, b in zip(ours, theirs, strict=True)) < 1e-3


@pytest.mark.parametrize("name", ["copy", "repeat-copy"])
@pytest.mark.parametrize("method", ["BPTT", "DNI", "DNI+Aux"])
def test_copying_is_learnt_by_every_method(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(hidden=16, batch=8, batches=12, rate=1e-3, guess_rate=1e-2)
    monkeypatch.setattr("benchmarks.papers.recurrent.COPYING", size)
    trials = {trial.key: trial for trial in ENTRIES[name].trials(False)}
    made = trials[f"{method}, T=3, seed 0"].run(SHORT, "a test")
    assert (made["solved"], made["batches"]) == ((0, None if name == "copy" else 0), 12)
    assert (made["cosine"] is None) == (method == "BPTT")
    assert "paper" in drawn(name, {f"{method}, T=3, seed 0": made})


def test_characters_are_told_from_those_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A text in which each character says what the next one is takes few bits, once learnt."""
    file = tmp_path / "text.txt"
    file.write_text("abcdefgh" * 2000)
    size = Size(hidden=16, batch=8, batches=150, rate=1e-2, guess_rate=1e-2)
    monkeypatch.setattr("benchmarks.papers.recurrent.TEXT", size)
    trials = {trial.key: trial for trial in ENTRIES["characters"].trials(False)}
    made = trials["DNI, T=8, seed 0"].run(Budget(full=False, data=file), "a test")
    assert made["bits"] < 1.0
    assert made["curve"][-1] == (147 * 8 * 8, pytest.approx(made["bits"], abs=0.1))


def test_choices_learn_from_what_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Dataset((torch.zeros(6000, 3), torch.arange(6000)), (torch.zeros(9, 3), torch.zeros(9)))
    seen: list[Dataset] = []

    def train(setting: Setting, data: Dataset, *rest: object) -> dict[str, float]:
        seen.append(data)
        return {}

    monkeypatch.setattr(choices, "train", train)
    monkeypatch.setattr(choices, "data_for", lambda net, folder: whole)
    ENTRIES["choices"].trials(False)[0].run(SHORT, "some")
    assert [len(data.train[1]) for data in seen] == [1000]
    assert seen[0].test[1].tolist() == list(range(5000))


def test_what_is_held_back_are_the_first_training_images() -> None:
    data = Dataset((torch.arange(20.0).view(20, 1), torch.arange(20)), (torch.zeros(5, 1), torch.zeros(5)))
    kept = held_back(data, 4)
    assert kept.train[0].flatten().tolist() == kept.train[1].tolist() == list(range(4, 20))
    assert kept.test[1].tolist() == kept.test[0].flatten().tolist() == [0, 1, 2, 3]
