"""What crosses a link."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepahead.pipeline import (
    Activation,
    Gradient,
    GradientKind,
    Mark,
    MarkKind,
    MessageError,
    TensorSpec,
    edge_name,
)

dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64])
shapes = st.lists(st.integers(0, 4), min_size=0, max_size=4).map(tuple)


@given(st.integers(0, 2**40), st.lists(shapes, min_size=1, max_size=3), dtypes, st.booleans())
def test_messages_carry_what_they_were_given(
    step: int, forms: list[tuple[int, ...]], dtype: torch.dtype, training: bool
) -> None:
    tensors = tuple(torch.zeros(form, dtype=dtype) for form in forms)
    down = Activation(edge="0>1", step=step, tensors=tensors, training=training)
    up = Gradient(edge="0>1", step=step, tensors=tensors, kind=GradientKind.TRUTH)
    assert down.tensors is tensors
    assert up.tensors is tensors
    assert (down.step, up.step, down.training) == (step, step, training)
    with pytest.raises(AttributeError):
        down.step = 3  # type: ignore[misc]


@given(shapes, dtypes, st.data())
def test_a_spec_admits_a_batch_of_another_size_and_nothing_else(
    shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    spec = TensorSpec.of(torch.zeros(shape, dtype=dtype))
    other = data.draw(shapes)
    other_dtype = data.draw(dtypes)
    fits = other_dtype == dtype and len(other) == len(shape) and other[1:] == shape[1:]
    assert spec.admits(torch.zeros(other, dtype=other_dtype)) == fits


def test_names() -> None:
    assert [edge_name(-1, 0), edge_name(0, 1)] == ["data>0", "0>1"]
    assert str(TensorSpec.of(torch.zeros(2, 3, dtype=torch.bfloat16))) == "bfloat16[2, 3]"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"edge": ""}, "a message needs the name of its edge"),
        ({"step": -1}, "the step of a message on edge 0>1 is -1; steps count from 0"),
        ({"tensors": ()}, "a message on edge 0>1 needs a tuple of tensors, not an empty tuple"),
        ({"tensors": torch.zeros(2)}, "needs a tuple of tensors, not a Tensor"),
        ({"tensors": (torch.zeros(2), 3)}, "a message on edge 0>1 carries a int, not a tensor"),
    ],
)
def test_messages_that_cannot_be(fields: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {"edge": "0>1", "step": 0, "tensors": (torch.zeros(2),)}
    with pytest.raises(MessageError, match=text):
        Activation(**good | fields)
    with pytest.raises(MessageError, match=text):
        Gradient(kind=GradientKind.TARGET, **good | fields)


def test_a_label_is_a_tensor() -> None:
    label: Any = [1, 2]
    tensors: tuple[Tensor, ...] = (torch.zeros(2),)
    with pytest.raises(MessageError, match="the label on edge 0>1 is a list, not a tensor"):
        Activation(edge="0>1", step=0, tensors=tensors, label=label)
    with pytest.raises(MessageError, match="steps count from 0"):
        Mark(edge="0>1", step=-2, kind=MarkKind.STOP)
