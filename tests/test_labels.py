"""How many samples a loss is the mean of, whatever the form of the label."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stepahead.pipeline.labels import samples_of

CLASSES = 5
NUMBERS = torch.tensor([0, 4, 2])
PLACES = torch.tensor([[0, 4], [2, 2], [1, 3]])
IGNORING = torch.tensor([[0, -100], [2, 2], [-100, -100]])


@pytest.mark.parametrize("classes", [CLASSES, None])
@pytest.mark.parametrize(("label", "samples"), [(NUMBERS, 3), (PLACES, 6), (IGNORING, 3), (None, 3)])
def test_samples_that_count(label: Tensor | None, samples: int, classes: int | None) -> None:
    assert samples_of(torch.zeros(3, 8), label, classes) == samples


def test_vectors_count_by_the_row() -> None:
    assert samples_of(torch.zeros(3, 8), F.one_hot(NUMBERS, CLASSES).float(), CLASSES) == 3


def test_where_all_are_ignored_nothing_is_divided_by_zero() -> None:
    assert samples_of(torch.zeros(3, 8), torch.full((3,), -100), CLASSES) == 1
