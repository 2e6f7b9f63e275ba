"""What all tests share."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# a busy machine is no failure; and what CI runs twice must come out the same twice
settings.register_profile(
    "stepahead", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("stepahead")


def pytest_report_header() -> str:
    return f"torch: {torch.__version__}, threads: {torch.get_num_threads()}"


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Let what a module draws while it is imported be the same each time: torch's own first seed is not."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)  # the nets are tiny
