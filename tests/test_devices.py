"""What is known of devices, and of finite numbers."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepahead.pipeline import parse_device
from stepahead.pipeline.devices import clock, default_generators, queue_clock
from stepahead.pipeline.finite import are_finite, count_non_finite, is_finite
from stepahead.workers.ring import Memory

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_cpu() -> None:
    cpu = parse_device("cpu")
    assert cpu == parse_device("cpu:0") == torch.device("cpu")
    assert default_generators(cpu) == (torch.default_generator,)
    now = clock(cpu)
    assert now() <= now()


@needs_gpu
def test_cuda() -> None:
    device = parse_device("cuda")
    assert device == torch.device("cuda", 0)
    assert len(default_generators(device)) == 2
    assert clock(device)() > 0


@needs_gpu
def test_the_clock_of_a_gpu() -> None:
    device = parse_device("cuda")
    queue, before = queue_clock(device), time.perf_counter_ns()
    assert queue is not None
    matrix = torch.randn(1024, 1024, device=device)
    for _ in range(3):  # points are used again
        begin = queue.point()
        for _ in range(50):
            matrix = (matrix @ matrix).clamp(-1, 1)
        began, ended = queue.times(begin, queue.point())
        assert before <= began < ended <= time.perf_counter_ns()
        before = ended


@needs_gpu
def test_the_memory_of_a_link_is_pinned() -> None:
    torch.cuda.init()
    memory = Memory.create(2, 4096, "test")
    assert memory.pinned
    memory.close()


@given(
    st.lists(st.floats(width=32), max_size=20),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_finite_means_every_value(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    expected = bool(torch.isfinite(tensor).all())
    assert is_finite(tensor) == expected
    assert (count_non_finite(tensor) == 0) == expected
    assert are_finite([torch.ones(3), tensor, torch.ones(2)]) == expected


def test_a_sum_that_overflows_is_no_proof() -> None:
    assert is_finite(torch.full((100,), 6e4, dtype=torch.float16))
    assert not is_finite(torch.tensor([float("inf"), float("-inf")]))
    assert is_finite(torch.tensor([2**40]))
