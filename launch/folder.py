"""The run folder: where everything that a run leaves is.

runs/<job>-<time>/        for its user only
  config.toml             the settings, resolved
  summary.json            what came of it
  telemetry.jsonl         samples of every stage, to play again
  trace.json.gz           what was done when, for some steps
  report.html             all of it on one page
  view-<step>.svg         views that were saved
  logs/<stage>/           what each worker printed, and what it raised; logs/data/ is the data process
  snapshots/<step>/       weights, a file for each stage
  control.sock            while it runs: for its workers; telemetry.sock for viewers; baseline/ while that is measured
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from stepahead.pipeline import UsageError

__all__ = ["RunFolder"]

TIME = "%Y%m%d-%H%M%S"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths in a run folder."""

    path: Path

    @classmethod
    def create(cls, job: str, run_dir: str | None) -> RunFolder:
        """Make a new run folder: the one that is asked for, or one under runs/ named after the job and the time."""
        if run_dir is None:
            return cls(_make_new(Path("runs") / f"{Path(job.partition(':')[0]).stem or 'job'}-{time.strftime(TIME)}"))
        path = Path(run_dir)
        try:
            taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        except OSError as error:
            raise _unusable(path, error) from None
        if taken:
            raise UsageError(f"{path} is there already and not empty; choose another --run-dir")
        return cls(_make(path, exist_ok=True))

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"


def _make_new(path: Path) -> Path:
    """Make a folder of that name, or of the next one that is free: two runs may begin in the same second."""
    for number in count(1):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            return _make(free, exist_ok=False)
        except FileExistsError:
            continue
    raise AssertionError("numbers do not end")


def _make(path: Path, *, exist_ok: bool) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=exist_ok)
        path.chmod(0o700)
    except OSError as error:
        if not exist_ok and path.exists():
            raise
        raise _unusable(path, error) from None
    return path


def _unusable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"the run folder {path} cannot be made: {error.strerror}; choose another --run-dir")
