"""Running averages of how good a predictor is, beside the textbook formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stepahead.pipeline import Quality


def test_one_update_is_the_textbook() -> None:
    prediction, gradient = torch.randn(40, 7), torch.randn(40, 7)
    gradient[3] = 0
    quality = Quality()
    assert quality.read() is None
    quality.update(prediction, gradient)
    reading = quality.read()
    assert reading is not None
    counted = gradient != 0
    assert reading.cosine == pytest.approx(
        F.cosine_similarity(prediction.flatten(), gradient.flatten(), dim=0).item(), abs=1e-5
    )
    assert reading.relative_error == pytest.approx(((prediction - gradient).norm() / gradient.norm()).item(), rel=1e-4)
    wrong = (prediction.sign() != gradient.sign())[counted].float().mean().item()
    assert reading.sign_error == pytest.approx(wrong, abs=1e-6)
    assert reading.batches == 1


def test_perfect_opposite_and_zero_predictions() -> None:
    gradient = torch.randn(10, 4)
    for factor, cosine, error, sign in [(1, 1, 0, 0), (-1, -1, 2, 1), (0, 0, 1, 1), (2, 1, 1, 0)]:
        quality = Quality()
        quality.update(factor * gradient, gradient)
        reading = quality.read()
        assert reading is not None
        assert (reading.cosine, reading.relative_error, reading.sign_error) == pytest.approx(
            (cosine, error, sign), abs=1e-3
        )


def test_a_zero_gradient_is_no_division_by_zero() -> None:
    quality = Quality()
    quality.update(torch.randn(3, 2), torch.zeros(3, 2))
    reading = quality.read()
    assert reading is not None
    assert (reading.cosine, reading.relative_error, reading.sign_error) == (0, 0, 0)


def test_the_average_forgets() -> None:
    gradient = torch.randn(64, 4)
    quality = Quality(memory=5)
    for _ in range(40):
        quality.update(-gradient, gradient)
    for _ in range(100):
        quality.update(gradient, gradient)
    reading = quality.read()
    assert reading is not None
    assert reading.cosine > 0.99


def test_every_fourth_batch_is_looked_at() -> None:
    gradient = torch.randn(8, 4)
    quality = Quality()
    for index in range(9):
        quality.update(gradient if index % 4 == 0 else -gradient, gradient)
    reading = quality.read()
    assert reading is not None
    assert reading.cosine == pytest.approx(1)
    assert reading.batches == 9


def test_a_few_rows_stand_for_many() -> None:
    gradient = torch.randn(6400, 16)
    prediction = gradient + torch.randn_like(gradient)
    few, expected = Quality(), F.cosine_similarity(prediction.flatten(), gradient.flatten(), dim=0).item()
    few.update(prediction, gradient)
    reading = few.read()
    assert reading is not None
    assert reading.cosine == pytest.approx(expected, abs=0.05)
