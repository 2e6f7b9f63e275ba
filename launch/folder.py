"""The run folder: where everything that a run leaves is.

runs/<job>-<time>/        for its user only
  config.toml             the settings, resolved
  summary.json            what came of it
  logs/<stage>/           what each worker printed, and what it raised; logs/data/ is the data process
  snapshots/<step>/       weights, a file for each stage
  control.sock            while it runs
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from stepahead.pipeline import UsageError

__all__ = ["RunFolder"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths in a run folder."""

    path: Path

    @classmethod
    def create(cls, job: str, run_dir: str | None) -> RunFolder:
        """Make a new run folder: the one that is asked for, or one under runs/ named after the job and the time."""
        if run_dir is None:
            stem = Path(job.partition(":")[0]).stem or "job"
            path = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
            path = next(
                free
                for free in (path, *(path.with_name(f"{path.name}-{n}") for n in range(2, 1000)))
                if not free.exists()
            )
        else:
            path = Path(run_dir)
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UsageError(f"{path} is there already and not empty; choose another --run-dir")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            what = f"the run folder {path} cannot be made: {error.strerror}"
            raise UsageError(f"{what}; choose another --run-dir") from None
        return cls(path)

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"
