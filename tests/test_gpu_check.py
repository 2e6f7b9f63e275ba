"""The check of a GPU runs on any machine; what needs a GPU is left out there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_check_of_a_gpu_runs_on_a_cpu_too(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    command = ["benchmarks/gpu/check.sh", "--device", "cpu", "--rounds", "1", "--out", str(table)]
    made = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, capture_output=True)
    text = table.read_text()
    assert made.returncode == 0, made.stderr.decode()
    assert text.count("| yes ") == 12
    assert "NO" not in text
