"""Jobs: what a user wants trained, as one object, and how the name of a job on the command line leads to it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.optim import Adam

from stepahead.pipeline import (
    Batch,
    InputRecipe,
    LossFunction,
    LRScheduleRecipe,
    Metric,
    Model,
    NonFinitePolicy,
    OptimizerRecipe,
    PredictorRecipe,
    SignalRecipe,
    Truth,
    UsageError,
    did_you_mean,
)
from stepahead.workers import Batches, drawing_apart

__all__ = ["BUILT_IN", "Job", "load_job"]

BUILT_IN = {"digits": "stepahead.launch.job_digits", "chars": "stepahead.launch.job_chars"}
ADAM = partial(Adam, lr=1e-3)
FUNCTION = "job"
"""What a file or a module calls its job, unless the command says another name: a Job, or a function that makes one."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, and on what.

    Example:
        Job(
            model=nn.Sequential(...),
            data=DataLoader(dataset, batch_size=64, shuffle=True),
            loss=nn.CrossEntropyLoss(),
            optimizer=partial(torch.optim.Adam, lr=1e-3),
            classes=10,
            epochs=5,
        )
    """

    model: Model
    """An `nn.Sequential`, a list of layers, or of functions that each make a new one: then workers make their own. Or a
    `Graph` of such."""
    data: Batches
    """Pairs of input and label: a DataLoader or another iterable, or a function that makes an epoch's iterable."""
    loss: LossFunction
    optimizer: OptimizerRecipe | Sequence[OptimizerRecipe | None]
    """Makes a stage's optimizer from its parameters; a list has one for each stage, None freezes it."""
    name: str = "job"
    test: Batches | None = None
    """Pairs to evaluate on."""
    metrics: Mapping[str, Metric] = field(default_factory=dict[str, Metric])
    """What to measure on them besides the loss: functions of (output, label)."""
    lr_schedule: LRScheduleRecipe | None = None
    """Makes a learning rate schedule, which counts batches."""
    clip: float | None = None
    """The most that the norm of one stage's gradient may be."""
    on_non_finite: NonFinitePolicy = "stop"
    """What NaN or infinity does: "stop" ends the run, "skip" passes the batch over."""
    classes: int | None = None
    """How many classes the labels name, for predictors that see the label; None for predictors that do not."""
    predictor: PredictorRecipe = "auto"
    """The kind of predictor that synthetic signals use, or a function that makes one."""
    predictor_optimizer: OptimizerRecipe = ADAM
    signal: SignalRecipe | None = None
    """What stages step on, in place of a synthetic signal with the predictor above."""
    truth: Truth | None = None
    """What stages do with the truth; unless given, true-up with the signal above, nothing with one of the job's own."""
    inputs: InputRecipe | None = None
    """Makes what stages guess their inputs with, from raw batches that they draw themselves: see `synthetic_inputs`."""
    chance: float = 1.0
    """Of each stage's to step on a batch, below 1 to leave some out."""
    stages: int = 2
    steps: int | None = None
    epochs: int | None = None
    evaluate_every: int | None = None
    """Evaluate after every so many steps; at the end in any case."""

    def __post_init__(self) -> None:
        for name in ("stages", "steps", "epochs", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"the job's {name} is {value!r}; it must be a whole number of at least 1")
        if not isinstance(self.chance, (int, float)) or not 0 < self.chance <= 1:
            raise UsageError(f"the job's chance is {self.chance!r}; it must be above 0 and at most 1")
        if self.truth is not None and not isinstance(self.truth, Truth):
            raise UsageError(f"the job's truth is {self.truth!r}; it must be a Truth: truth=Truth(use='true-up')")
        if isinstance(self.test, (list, tuple)) and not self.test:
            raise UsageError("the job's test data has no batch; leave it out, or give some")

    @cached_property
    def example(self) -> Batch:
        """The first batch of the data, drawn once; for data that can be run through again."""
        batch = next(iter(self.data(0) if callable(self.data) else self.data))
        return batch[0], batch[1]


def load_job(name: str, options: Mapping[str, Any] | None = None, *, seed: int = 0) -> Job:
    """Return the job of a name: a built-in one, `file.py`, `file.py:function`, or `package.module:function`.

    Whatever it draws while it is made comes from the seed, so that all processes make the same.
    """
    with drawing_apart(seed):
        made: object = _find(name)
        if isinstance(made, Job):
            if options:
                raise UsageError(f"{name} is a job as it stands; only a function that makes one can take options")
            return made
        if not callable(made):
            raise UsageError(f"{name} is a {type(made).__name__}; it must be a Job, or a function that makes one")
        made = _call(name, made, dict(options or {}))
    if not isinstance(made, Job):
        raise UsageError(f"{name} made a {type(made).__name__}, not a stepahead.launch.Job")
    return made


def _find(name: str) -> object:
    if name in BUILT_IN:
        return getattr(importlib.import_module(BUILT_IN[name]), FUNCTION)
    where, _, function = name.rpartition(":") if ":" in name else (name, "", FUNCTION)
    module = _module_of_file(Path(where)) if where.endswith(".py") else _module_of_name(where, name)
    try:
        return getattr(module, function)
    except AttributeError:
        made = [name for name, value in vars(module).items() if _is_made_here(value, module)]
        raise UsageError(f"{where} has no {function!r}; {did_you_mean(function, made)}") from None


def _is_made_here(value: object, module: ModuleType) -> bool:
    return isinstance(value, Job) or (inspect.isfunction(value) and value.__module__ == module.__name__)


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no job file {path}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as for a script: a job may import its neighbours
    known = path.stem in sys.modules or path.stem in sys.stdlib_module_names
    name = f"job_{path.stem}" if known else path.stem  # a job may be called json.py
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} does not import: {_line_of(error, path)}{_what(error)}") from error
    return module


def _module_of_name(where: str, name: str) -> ModuleType:
    if ":" not in name and "." not in name:
        raise UsageError(
            f"there is no job {name!r}; {did_you_mean(name, BUILT_IN)} (a job of your own is file.py, "
            f"file.py:function or package.module:function)"
        )
    sys.path.insert(0, "")
    try:
        return importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise UsageError(f"module {where} does not import: {_what(error)}") from error
    finally:
        sys.path.remove("")


def _call(name: str, make: Callable[..., object], options: dict[str, Any]) -> object:
    try:
        signature = inspect.signature(make)
    except ValueError:
        raise UsageError(f"{name} is a {make}; it must be a Job, or a function that makes one") from None
    known = signature.parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        for option in options:
            if option not in known:
                raise UsageError(f"job {name} has no option {option!r}; {did_you_mean(option, known)}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UsageError(f"job {name} cannot be made: {error}; give options as --set options.name=value") from None
    try:
        return make(**options)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.format_list(traceback.extract_tb(error.__traceback__)[1:])  # but for this one
        raise UsageError("\n".join([f"job {name} cannot be made: {_what(error)}", *frames]).rstrip()) from error


def _what(error: BaseException) -> str:
    return f"it calls sys.exit({error})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"


def _line_of(error: BaseException, path: Path) -> str:
    """Return the line of the file in which the error arose, if one did."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path.absolute()):
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "
