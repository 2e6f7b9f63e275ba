"""A worker's heap: what a step frees is there for the next one, without a page fault."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from stepahead.workers.heap import USERS

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own ways")
PROGRAM = """
import resource, sys
import torch
from stepahead.workers.heap import keep_freed_memory

def step():
    kept = [torch.ones(size) for size in (25_000, 250_000) for _ in range(40)]  # 100 KB and 1 MB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
step()
before = faults()
for _ in range(5):
    step()
print((faults() - before) // 5)
"""


def faults_a_step(how: str, **settings: str) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(USERS)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env={**plain, **settings}, capture_output=True, text=True, timeout=50,
        check=True,
    )  # fmt: skip
    return int(done.stdout)


def test_the_next_step_takes_what_the_last_one_freed() -> None:
    pages = 40 * (100_000 + 1_000_000) // 4096
    assert faults_a_step("keep") < pages // 100


def test_what_the_user_set_for_malloc_stays() -> None:
    own = {"MALLOC_TRIM_THRESHOLD_": "1000", "MALLOC_MMAP_THRESHOLD_": "1000"}  # gives all of it back at once
    assert faults_a_step("keep", **own) > 100 * max(faults_a_step("keep"), 1)
