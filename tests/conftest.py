"""What all tests share."""

from __future__ import annotations

import pytest
import torch


def pytest_report_header() -> str:
    return f"torch: {torch.__version__}, threads: {torch.get_num_threads()}"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)  # the nets are tiny
