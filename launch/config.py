"""Settings of a run: defaults < a TOML file < `--set key=value` < flags. The only file that knows them all."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from stepahead.pipeline import KEEPS, LOCKED, RELAYS, USES, UsageError, did_you_mean

__all__ = ["CHOICES", "TRUTH_SETTINGS", "Config", "read_config", "write_config"]

CHOICES = {
    "schedule": ("decoupled", *LOCKED),
    "signal": ("auto", "synthetic", "locked", "probe", "silent"),
    "truth": ("auto", *USES),
    "truth_keep": (None, *KEEPS),
    "truth_relay": (None, *RELAYS),
    "lag": ("free", "exact"),
    "link": ("auto", "shm", "zmq", "dist"),
    "start_method": ("auto", "fork", "spawn"),
    "view": ("auto", "live", "lines"),
}
TRUTH_SETTINGS = ("truth_every", "truth_keep", "truth_relay", "truth_full_rate_lag")
"""Fields of stepahead.pipeline.Truth that can be set."""
MOST_WINDOW = 64
MOST_SPIN_US = 1_000_000
NAMES = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", dict: "a table"}
AT_LEAST_1 = (
    "stages",
    "blocks",
    "microbatches",
    "truth_every",
    "max_lag",
    "steps",
    "epochs",
    "evaluate_every",
    "window",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that can be set; what is None is the job's to say, or follows from the rest."""

    job: str = ""
    """A built-in job, file.py, file.py:function, or package.module:function."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Passed to the function that makes the job."""
    stages: int | None = None
    cut: str = "count"
    """"count" for equally many layers a stage, "cost" for equally long ones (measured, with guesses and second passes),
    or the names of the layers that the stages after the first begin with: "3,6,9"."""
    blocks: int | None = None
    """Into how many blocks the stages are put: locked inside of each, decoupled from one to the next. Unless given each
    stage is one."""
    schedule: str = "decoupled"
    microbatches: int | None = None
    """Into how many a batch is cut under gpipe, 1f1b, interleaved-1f1b, interleaved-zb, zbv; one for each stage, unless
    given."""
    signal: str = "auto"
    """What stages step on; "auto" is the job's own."""
    truth: str = "auto"
    """What stages do with the true gradients that come later; "auto" is the job's own, or true-up unless the job has
    a signal of its own. stepahead.pipeline.Truth has the details."""
    truth_every: int | None = None
    """Of each so many-th batch."""
    truth_keep: str | None = None
    truth_relay: str | None = None
    truth_full_rate_lag: float | None = None
    lag: str = "free"
    max_lag: int | None = None
    """The most steps that a gradient may lag (free, 8 unless given), or how many it does (exact, 3)."""
    link: str = "auto"
    """Shared memory, ZeroMQ, torch.distributed ("dist": NCCL between GPUs, else gloo), or as it fits ("auto")."""
    link_secret: str | None = None
    """A file with a secret that each of several hosts has: then what goes between them is encrypted."""
    window: int = 2
    """Messages that a link holds."""
    spin_us: float = 0.0
    """Microseconds for which a worker that waits keeps its core and looks again and again before it sleeps, each time.

    On shared memory it looks for 200 in any case, but less often where that is in vain.
    """
    ledger: bool = False
    """Whether workers write down every message that they send or receive."""
    telemetry: bool = True
    """Whether workers keep what they did when, for timelines; totals are kept in any case."""
    timeout: float = 600.0
    """Seconds that a worker waits for another one."""
    device: str = "auto"
    """"auto", "cpu", "cuda", one for each stage: "cuda:0,cuda:1", or "virtual": real processes and links, and stages
    that last `stage_ms`."""
    stage_ms: float | None = None
    """Of a virtual stage: the milliseconds that forward and backward pass and optimizer take for a batch."""
    jitter: float = 0.0
    """By which share, at most, what a virtual stage does lasts longer or shorter each time."""
    slow_stage: str | None = None
    """Virtual stages that take longer, and how many times: "3:1.5,5:2"."""
    link_latency_ms: float = 0.0
    """Of virtual stages: how much later what one sends may be used by another."""
    link_gbps: float | None = None
    """Of virtual stages: the gigabits that go over a link in a second."""
    steps: int | None = None
    epochs: int | None = None
    evaluate_every: int | None = None
    evaluate: bool = True
    """Whether to run the test batches at all."""
    seed: int = 0
    run_dir: str | None = None
    baseline: str = "lockstep"
    """The locked schedule to measure first, for comparison; "none"; or an earlier run's folder or summary.json."""
    view: str = "auto"
    """"live" on a terminal, plain "lines", or "auto": live where there is a terminal."""
    start_method: str = "auto"
    """How workers start: forked from a warm parent, or fresh ("spawn"), as CUDA needs it."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Config).items():
            _check_type(name, getattr(self, name), hint)
            _check_text(name, getattr(self, name))
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"{name} is {value!r}; {did_you_mean(value, filter(None, choices))}")
        for name in AT_LEAST_1:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        self._check_virtual()
        if self.window > MOST_WINDOW:
            raise UsageError(f"window is {self.window}; a link may hold at most {MOST_WINDOW} messages")
        if not 0 <= self.spin_us <= MOST_SPIN_US:
            raise UsageError(f"spin_us is {self.spin_us}; it must be a number from 0 to {MOST_SPIN_US:,}")
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"timeout is {self.timeout}; it must be a number of seconds above 0")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must be a number from 0 to 2^63 - 1")

    def _check_virtual(self) -> None:
        """Refuse what virtual devices cannot be, and settings that only they have."""
        if "virtual" in self.device.split(",") and self.device != "virtual":
            raise UsageError(f"device is {self.device!r}; virtual stages are all of them, or none: --device virtual")
        if self.device != "virtual":
            given = {"stage_ms": self.stage_ms, "jitter": self.jitter, "slow_stage": self.slow_stage}
            given |= {"link_latency_ms": self.link_latency_ms, "link_gbps": self.link_gbps}
            for name, value in given.items():
                if value:
                    raise UsageError(f"{name} is {value}, and device is {self.device!r}; it is for --device virtual")
        elif self.stage_ms is None:
            raise UsageError("device is 'virtual', and nothing says how long a stage takes; --stage-ms 240")
        elif not 0 < self.stage_ms < math.inf:
            raise UsageError(f"stage_ms is {self.stage_ms}; it must be a number of milliseconds above 0")
        if not 0 <= self.jitter < 1:
            raise UsageError(f"jitter is {self.jitter}; it must be a share from 0 to below 1")
        if not 0 <= self.link_latency_ms < math.inf:
            raise UsageError(f"link_latency_ms is {self.link_latency_ms}; it must be a number of milliseconds")
        if self.link_gbps is not None and not 0 < self.link_gbps < math.inf:
            raise UsageError(f"link_gbps is {self.link_gbps}; it must be a number of gigabits a second above 0")

    def without_decoupling(self) -> Config:
        """Return the settings less all that says how stages are decoupled: for those that step on the truth alone."""
        unset: dict[str, Any] = dict.fromkeys(("blocks", *TRUTH_SETTINGS))
        return dataclasses.replace(self, signal="auto", truth="off", **unset)


def read_config(
    file: Path | None = None, assignments: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Return the settings that a file, `key=value` assignments and flags make together; later ones win."""
    settings: dict[str, Any] = {}
    if file is not None:
        _merge(settings, _read_toml(file), str(file))
    for assignment in assignments:
        _merge(settings, _parse_assignment(assignment), f"--set {assignment}")
    _merge(settings, {name: value for name, value in (flags or {}).items() if value is not None}, "the command")
    return Config(**settings)


def write_config(config: Config, file: Path) -> None:
    """Write the settings as TOML; those that are None are left out."""
    values = dataclasses.asdict(config)
    options = values.pop("options")
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    lines += ["", "[options]", *(f"{json.dumps(name)} = {_toml(value)}" for name, value in options.items())]
    try:
        file.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None


def _merge(settings: dict[str, Any], new: Mapping[str, Any], source: str) -> None:
    known = [entry.name for entry in dataclasses.fields(Config)]
    for name, value in new.items():
        key = name.replace("-", "_")
        if key not in known:
            raise UsageError(f"{source} has an unknown setting {name!r}; {did_you_mean(key, known)}")
        if isinstance(value, Mapping) and key != "options":
            raise UsageError(f"{source} sets a part of {key!r}, which is one value; options of a job are options.NAME")
        both_tables = isinstance(value, Mapping) and isinstance(settings.get(key), Mapping)
        settings[key] = {**settings[key], **value} if both_tables else value


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"the settings in {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not TOML: {error}") from None


def _parse_assignment(assignment: str) -> dict[str, Any]:
    name, equals, text = assignment.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {assignment} says nothing; write --set name=value, for example --set options.width=64")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a word needs no quotes
    for part in reversed(name.strip().split(".")):
        value = {part: value}
    return dict(value)


def _check_type(name: str, value: object, hint: Any) -> None:
    allowed = tuple(kind for kind in get_args(hint) or (hint,) if isinstance(kind, type))
    if name == "options":
        allowed = (dict,)
    numbers = (int,) if float in allowed else ()
    if isinstance(value, bool) != (bool in allowed) or not isinstance(value, (*allowed, *numbers)):
        names = " or ".join(NAMES[kind] for kind in allowed if kind is not type(None))
        raise UsageError(f"{name} is {value!r}; it must be {names}")


def _check_text(name: str, value: object) -> None:
    if isinstance(value, str) and not value.isascii() and value != value.encode(errors="ignore").decode():
        raise UsageError(f"{name} is {value!r}, which is not UTF-8; settings are kept in a file that is")


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    raise UsageError(f"an option is {value!r}, which a settings file cannot hold; use numbers, words, lists and tables")
