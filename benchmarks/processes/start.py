"""From the command to the first step: how long a run takes to begin.

python -m benchmarks.processes.start [--job digits] [--stages 2] [--rounds 7]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median


def seconds_to_first_step(job: str, stages: int) -> float:
    """Start the command for one step, and return when its line about that step came."""
    with tempfile.TemporaryDirectory() as folder:
        where = str(Path(folder) / "run")
        command = [sys.executable, "-m", "stepahead.launch", "train", job, "--stages", str(stages), "--steps", "1"]
        command += ["--baseline", "none"]
        begun = time.monotonic()
        with subprocess.Popen([*command, "--run-dir", where], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            next(line for line in process.stdout if line.startswith("step 1/1"))
            taken = time.monotonic() - begun
            process.stdout.read()
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="digits")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found = sorted(seconds_to_first_step(options.job, options.stages) for _ in range(options.rounds))
    print(f"{options.stages} stages: median {median(found):.2f} s, least {found[0]:.2f}, most {found[-1]:.2f}")


if __name__ == "__main__":
    main()
