"""Cores for `Recurrent` that torch does not have: any cell, step by step, and an LSTM with normed gates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .states import State, tensors_of

__all__ = ["LayerNormLSTMCell", "Unrolled"]


class Unrolled(nn.Module):
    """A core out of a cell, which is run on one step after the other.

    Args:
        cell: cell(inputs, state) -> state, as torch's cells are; the state is None at a sequence's start. What the core
            puts out is the first tensor of the state.
    """

    def __init__(self, cell: Callable[[Tensor, State | None], State]) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, window: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        outputs: list[Tensor] = []
        for inputs in window.unbind(dim=1):
            state = self.cell(inputs, state)
            outputs.append(tensors_of(state)[0])
        assert state is not None, "a window has at least one step"
        return torch.stack(outputs, dim=1), state


class LayerNormLSTMCell(nn.Module):
    """An LSTM cell whose gates and whose memory go through LayerNorm."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_inputs = nn.Linear(inputs, 4 * hidden, bias=False)
        self.of_outputs = nn.Linear(hidden, 4 * hidden, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(4 * hidden), nn.LayerNorm(4 * hidden)])
        self.memory_norm = nn.LayerNorm(hidden)
        nn.init.ones_(self.norms[0].bias[hidden : 2 * hidden])  # type: ignore[index]  # remember at first

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        zeros = inputs.new_zeros(len(inputs), self.hidden)
        outputs, memory = (zeros, zeros) if state is None else state
        gates = self.norms[0](self.of_inputs(inputs)) + self.norms[1](self.of_outputs(outputs))
        take, keep, give, new = gates.chunk(4, dim=1)
        memory = keep.sigmoid() * memory + take.sigmoid() * new.tanh()
        return give.sigmoid() * self.memory_norm(memory).tanh(), memory
