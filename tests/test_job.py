"""Jobs: from a name on the command line to an object, and each way in which that can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import CLASSES, adam, cdni, mlp, rows
from torch import nn

from stepahead.launch import Job, load_job
from stepahead.launch.config import Config
from stepahead.launch.plan import Plan, make_plan
from stepahead.launch.start import start_fresh
from stepahead.pipeline import CutError, Truth, UsageError, layers_of

HEAD = """
from functools import partial
import torch
from torch import nn
from torch.optim import SGD
from stepahead.launch import Job
def job(width=4, **more):
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    return Job(model=model, data=[], loss=nn.MSELoss(), optimizer=partial(SGD, lr=1.0), **more)
"""


def write(folder: Path, text: str) -> str:
    file = folder / "mine.py"
    file.write_text(HEAD + text)
    return str(file)


def plan(job: Job, **settings: Any) -> Plan:
    place: dict[str, Any] = {"device": "cpu"}
    return make_plan(Config(**place | settings), job)


def simple(**more: Any) -> Job:
    needed: dict[str, Any] = {"model": mlp(), "data": rows(3), "loss": nn.CrossEntropyLoss(), "optimizer": adam}
    return Job(**needed | more)


def test_a_file_a_function_and_a_module_lead_to_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "def wide():\n    return job(width=9)\nready = job()\n")
    assert load_job(file).stages == 2
    assert layers_of(load_job(file, {"width": 7}).model)[0].build(0).out_features == 7
    assert layers_of(load_job(f"{file}:wide").model)[0].build(0).out_features == 9
    assert isinstance(load_job(f"{file}:ready"), Job)
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(load_job("mine:wide"), Job)


def test_the_same_seed_makes_the_same_job(tmp_path: Path) -> None:
    file = write(tmp_path, "import random\nLUCK = random.random()\n")
    weights = [[w.clone() for w in load_job(file, seed=seed).model.parameters()] for seed in (1, 1, 2)]  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])
    state = torch.get_rng_state()
    load_job(file)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("digit", {}, "there is no job 'digit'; did you mean 'digits'? (a job of your own is file.py"),
        ("none.py", {}, "there is no job file none.py"),
        ("no.such.module:job", {}, "module no.such.module does not import: ModuleNotFoundError"),
        ("{file}:jab", {}, "has no 'jab'; did you mean 'job'?"),
        ("{file}:torch", {}, "is a module; it must be a Job, or a function that makes one"),
        ("{file}:partial", {}, "is a <class 'functools.partial'>; it must be a Job, or a function that makes one"),
        ("{file}:needy", {}, "cannot be made: missing a required argument: 'width'; give options as --set options."),
        ("{file}:ready", {"width": 3}, "is a job as it stands; only a function that makes one can take options"),
        ("{file}:strict", {"wide": 3}, "has no option 'wide'; did you mean 'width'?"),
        ("{file}:nothing", {}, "made a NoneType, not a stepahead.launch.Job"),
    ],
)
def test_each_wrong_name_is_one_sentence(tmp_path: Path, name: str, options: dict[str, Any], said: str) -> None:
    made = ["ready = job()", "def strict(width=1): pass", "def nothing(): pass", "def needy(width): pass"]
    file = write(tmp_path, "\n".join(made))
    with pytest.raises(UsageError) as caught:
        load_job(name.format(file=file), options)
    assert said in str(caught.value)


def test_a_file_that_does_not_import_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    with pytest.raises(UsageError, match=r"broken.py does not import: line 2: ZeroDivisionError: division by zero"):
        load_job(str(tmp_path / "broken.py"))
    (tmp_path / "syntax.py").write_text("def (:\n")
    with pytest.raises(UsageError, match=r"syntax.py does not import: SyntaxError: "):
        load_job(str(tmp_path / "syntax.py"))


def test_a_job_that_raises_shows_the_lines_of_its_user_alone(tmp_path: Path) -> None:
    made = ["def dig(): raise ValueError('no data')", "def deep(): dig()", "def leave():", "    raise SystemExit(7)"]
    file = write(tmp_path, "\n".join(made))
    with pytest.raises(UsageError, match="deep cannot be made: ValueError: no data\n") as caught:
        load_job(f"{file}:deep")
    assert str(caught.value).count("  File ") == str(caught.value).count(str(file)) - 1 == 2
    with pytest.raises(UsageError, match=r"leave cannot be made: it calls sys.exit\(7\)"):
        load_job(f"{file}:leave")
    (tmp_path / "script.py").write_text("import sys\nsys.exit('that was it')\n")
    with pytest.raises(UsageError, match=r"script.py does not import: line 2: it calls sys.exit\(that was it\)"):
        load_job(str(tmp_path / "script.py"))


def test_jobs_check_their_numbers() -> None:
    with pytest.raises(UsageError, match="the job's test data has no batch; leave it out, or give some"):
        simple(test=[])
    with pytest.raises(UsageError, match="the job's steps is 0; it must be a whole number of at least 1"):
        simple(steps=0)


def test_a_plan_fills_in_what_is_open() -> None:
    made = plan(simple(stages=3, epochs=2))
    assert (made.stages, made.cut, made.total_steps, made.devices) == (3, (3, 3, 3), 6, ("cpu",) * 3)
    assert plan(simple(steps=7, epochs=2)).config.steps == 7
    assert plan(simple()).config.epochs == 1
    assert plan(simple(steps=7)).config.epochs is None
    assert plan(simple(), cut="2,5", stages=3).cut == (2, 3, 4)
    measured = plan(simple(), cut="cost", stages=3)
    assert sum(measured.cut) == 9
    assert make_plan(measured.config, simple()).cut == measured.cut  # and is not measured again
    with pytest.raises(UsageError, match="cut is 'cost', which tries a batch; give data that can be run through more"):
        plan(simple(data=iter(rows(3))), cut="cost")
    assert plan(simple(data=lambda epoch: rows(2)), cut="cost").stages == 2
    assert plan(simple(), schedule="lockstep").signal == "locked"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stages": 10}, "10"),
        ({"cut": "2,nine"}, "nine"),
        ({"cut": "1,2", "stages": 4}, "cut names 2 layers, which makes 3 stages, and stages is 4"),
        ({"device": "cuda:7"}, "device cuda:7 is not there"),
        ({"device": "cpu,cpu,cpu"}, "device names 3 devices for 2 stages; name one, or one for each"),
        ({"device": "tpu"}, "tpu"),
        ({"schedule": "lockstep", "truth": "learn"}, "truth is 'learn', but locked stages wait for it in any case"),
        (
            {"truth": "stash", "signal": "silent"},
            "signal is 'silent', but with truth 'stash' stages step on that alone",
        ),
        ({"truth": "learn", "signal": "silent"}, "with signal 'silent' there is nothing that could learn from it"),
        (
            {"truth": "replay", "truth_every": 2},
            "with replay, stages step on the truth alone, so they need that of every",
        ),
        ({"truth": "off", "truth_keep": "graph"}, "truth_keep is given, but nothing is made of the truth"),
        ({"truth_full_rate_lag": 0}, "stages learn at full rate up to a lag of 0; that must be above 0"),
        ({"signal": "silent", "truth_every": 2}, "truth_every is given, but nothing is made of the truth"),
        ({"schedule": "lockstep", "truth_every": 3}, "truth_every is given, but nothing is made of the truth"),
        ({"signal": "probe"}, "a probe needs to know the number of classes"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(simple(), **settings).work(0)
    assert said in str(caught.value)


OWN = Truth(use="true-up", every=2, keep="graph")


@pytest.mark.parametrize(
    ("job", "settings", "truth"),
    [
        ({}, {}, Truth(use="true-up")),
        ({}, {"truth_every": 3}, Truth(use="true-up", every=3)),
        ({}, {"truth_full_rate_lag": 4}, Truth(use="true-up", full_rate_lag=4)),
        ({}, {"truth": "off"}, Truth()),
        ({}, {"signal": "probe"}, Truth()),
        ({}, {"schedule": "lockstep"}, Truth()),
        ({"signal": cdni}, {}, Truth()),
        ({"signal": cdni}, {"signal": "synthetic"}, Truth(use="true-up")),
        ({"signal": cdni, "truth": OWN}, {}, OWN),
        ({"truth": OWN}, {"truth": "true-up"}, OWN),
        ({"truth": OWN}, {"truth_every": 6}, replace(OWN, every=6)),
        ({"truth": OWN}, {"truth": "stash"}, Truth(use="stash")),
        ({"truth": OWN}, {"signal": "silent"}, Truth()),
    ],
)
def test_what_is_made_of_the_truth(job: dict[str, Any], settings: dict[str, Any], truth: Truth) -> None:
    assert plan(simple(classes=CLASSES, **job), **settings).truth == truth


@pytest.mark.parametrize(
    ("gpus", "setting", "devices", "fresh"),
    [
        (0, "auto", ("cpu",) * 3, False),
        (3, "auto", ("cuda:0", "cuda:1", "cuda:2"), True),
        (2, "auto", ("cuda:0", "cuda:1", "cuda:0"), True),
        (2, "cuda", ("cuda:0", "cuda:1", "cuda:0"), True),
        (2, "cuda:1", ("cuda:1",) * 3, True),
        (2, "cpu,cuda:1,cuda:0", ("cpu", "cuda:1", "cuda:0"), True),
        (2, "cpu", ("cpu",) * 3, False),
    ],
)
def test_stages_go_to_gpus_where_there_are_some(
    gpus: int, setting: str, devices: tuple[str, ...], fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    made = plan(simple(), stages=3, device=setting)
    assert made.devices == devices
    assert all(bool(cores) == (device == "cpu") for device, cores in zip(devices, made.cores, strict=True))
    assert start_fresh(made, named=True) is fresh
    shared = len({device for device in devices if device != "cpu"}) < sum(device != "cpu" for device in devices)
    assert any("share" in note and "GPU" in note for note in made.notes) == shared


@pytest.mark.parametrize(
    ("gpus", "link", "said"),
    [
        (1, "dist", "stages 0 and 1 share cuda:0, which NCCL refuses: gloo joins them"),
        (1, "auto", None),
        (3, "dist", None),
        (0, "dist", None),
    ],
)
def test_a_run_says_that_nccl_refuses_a_shared_gpu(
    gpus: int, link: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    notes = [note for note in plan(simple(), stages=3, link=link, device="auto").notes if "NCCL" in note]
    assert [note.startswith(said or "") for note in notes] == [True] * (said is not None)


def test_a_job_that_is_an_object_forks_onto_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    made = plan(simple(), device="cuda")
    assert not start_fresh(made, named=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match=r"this process has used CUDA, .* give train\(\) the job's file"):
        start_fresh(made, named=False)
    with pytest.raises(UsageError, match="a fresh process cannot find a job that is an object"):
        start_fresh(plan(simple(), device="cuda", start_method="spawn"), named=False)


def test_tied_weights_across_the_cut_are_refused_beforehand() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(CutError, match="are one tied weight"):
        plan(simple(model=model))
