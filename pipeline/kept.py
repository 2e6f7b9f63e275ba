"""What a stage keeps of its batches until their gradients come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from .errors import MessageError
from .messages import Gradient, TensorSpec
from .passes import Before, Pass
from .recurrent import Carried
from .states import tensors_of

__all__ = ["Kept", "KeptBatch"]


@dataclass(slots=True)
class KeptBatch:
    """What a batch leaves behind."""

    h: Tensor
    """The group's output, detached."""
    label: Tensor | None
    forward: Pass | None = None
    """While the group has not stepped on it, or where it is kept in place of the input."""
    h_in: Tensor | None = None
    """The group's input, to run the batch again."""
    guess: Tensor | None = None
    """The gradient at the output that the group stepped on."""
    refused: bool = False
    """Whether that step was not made, because the batch was left out or something was not finite."""
    said: Tensor | None = None
    """The gradient at the input that it made then, while the stage above has not been told."""
    before: Before | None = None
    """How the group was before the batch, to go back to."""
    carried: list[Carried] = field(default_factory=list[Carried])
    """What its recurrent layers had from the window before, to run the batch again."""

    @property
    def kept_input(self) -> Tensor:
        """The group's input, wherever it is kept."""
        h_in = self.h_in if self.forward is None else self.forward.h_in
        assert h_in is not None, "the input is not kept of a batch that nobody will run again"
        return h_in

    @property
    def nbytes(self) -> int:
        """Bytes held, but for what autograd keeps: of a forward pass that is the input too."""
        kept = [self.h, self.label, self.h_in, self.guess, self.said]
        kept += [] if self.before is None else self.before.buffers
        kept += [tensor for had in self.carried if had.state is not None for tensor in tensors_of(had.state)]
        if self.forward is not None and self.forward.copied:
            kept += self.forward.weights
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in kept if tensor is not None}.values())


class Kept:
    """The batches of one stage whose gradient has not come yet, by step; None for one that needs none any more."""

    def __init__(self) -> None:
        self.nbytes = self.most_bytes = 0
        """Bytes that are kept now, and the most at a time; without what autograd keeps."""
        self.graphs = self.most_graphs = 0
        """Forward passes of which autograd keeps something; and the most at a time, with that of the batch at hand."""
        self._batches: dict[int, KeptBatch | None] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[int]:
        return iter(self._batches)

    def keep(self, step: int, batch: KeptBatch | None) -> None:
        """Remember a batch until its gradient comes."""
        self._batches[step] = batch
        if batch is not None:
            self._count(batch, 1)
            self.most_bytes = max(self.most_bytes, self.nbytes)
            self.most_graphs = max(self.most_graphs, self.graphs + (batch.forward is None))

    def take(self, gradient: Gradient, where: str, *, shaped: bool = True) -> KeptBatch | None:
        """Return the batch that a gradient answers, then forgotten; it may have to be of the output's shape."""
        if gradient.step not in self._batches:
            raise MessageError(f"{where}: a gradient came, but no batch of that step waits for one")
        batch = self._batches[gradient.step]
        if batch is not None:
            came, due = TensorSpec.of(gradient.tensors[0]), TensorSpec.of(batch.h)
            if shaped and came != due:
                raise MessageError(f"{where}: the gradient from below is {came}, the activation was {due}")
            self._count(batch, -1)
        del self._batches[gradient.step]
        return batch

    def _count(self, batch: KeptBatch, sign: int) -> None:
        self.nbytes += sign * batch.nbytes
        self.graphs += sign * (batch.forward is not None)
