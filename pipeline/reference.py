"""The reference: all stages in one process, in the order of a schedule.

It is the oracle that processes are compared with, to the bit, and the short way for a researcher to train
decoupled without any. The stages are the very ones that workers run; only the links are missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from .errors import UsageError
from .messages import Activation, Gradient, Message
from .schedules import exact_lag, free_lag, schedule
from .signals import Loss
from .stage import Stage

__all__ = ["Batch", "Metric", "Reference", "StepReport"]

Batch = tuple[Tensor, Tensor | None]
Metric = Callable[[Tensor, Tensor], Tensor]
LagMode = Literal["exact", "free"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a run."""

    step: int
    samples: int
    loss: float
    """The loss on this step's batch, before the step."""


class Reference:
    """Drives stages in one process.

    Args:
        stages: From `assemble`.
        lag: Steps after which a stage learns from a gradient, for all stages or for each: 1 is the papers'
            algorithm, 2 is what processes have.
        mode: "exact" uses each gradient exactly `lag` steps later; "free" after 1 to `lag` steps, drawn from the
            stages' seed, as if links were slow at times.
    """

    def __init__(self, stages: Sequence[Stage], *, lag: int | Sequence[int] = 2, mode: LagMode = "exact") -> None:
        self.stages = list(stages)
        lags = [lag] * len(stages) if isinstance(lag, int) else list(lag)
        if len(lags) < len(stages) - 1 or min(lags, default=1) < 1:
            raise UsageError(
                f"lags {lags} do not suit {len(stages)} stages; give one of at least 1 for all but the last"
            )
        self._due = exact_lag(lags) if mode == "exact" else free_lag(lags, stages[0].seed)
        self._activations: list[deque[Activation]] = [deque() for _ in stages]
        self._gradients: list[deque[Gradient]] = [deque() for _ in stages]
        self._samples = 0

    @property
    def step(self) -> int:
        """How many steps have been made."""
        return self.stages[0].step

    def train(self, batches: Iterable[Batch], steps: int | None = None) -> Iterator[StepReport]:
        """Train on each batch, at most `steps` of them, and yield a report after each.

        Between two reports the stages stand still after that step: a good moment to evaluate. At the end the
        gradients that are still on their way are learnt from.
        """
        waits = [stage.waits for stage in self.stages]
        try:
            for actions in schedule(waits, self._due, self._feed(islice(batches, steps))):
                before = self.step
                for what, stage, _ in actions:
                    self._act(what, stage)
                if self.step > before:
                    yield self._report()
        except GeneratorExit:  # the caller broke off its loop: leave nothing on its way
            for stage, gradients in enumerate(self._gradients):
                while gradients:
                    self._act("learn", stage)
            raise

    def evaluate(self, batches: Iterable[Batch], metrics: Mapping[str, Metric] | None = None) -> dict[str, float]:
        """Return the mean loss and metrics over the batches, with all groups in eval mode."""
        totals: dict[str, float] = {}
        samples = 0
        for batch in batches:
            output, label = self._output(batch)
            measured = {"loss": self._loss(output, label)}
            if label is not None:
                measured |= {name: metric(output, label) for name, metric in (metrics or {}).items()}
            for name, value in measured.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(output)
            samples += len(output)
        if not samples:
            raise UsageError("there is no batch to evaluate on")
        return {name: total / samples for name, total in totals.items()}

    def _feed(self, batches: Iterable[Batch]) -> Iterator[int]:
        """Hand each batch to the first stage, and yield its step."""
        first = self.stages[0]
        for step, (data, label) in enumerate(batches, start=self.step):
            self._samples = len(data)
            self._activations[0].append(Activation(edge=first.above, step=step, tensors=(data,), label=label))
            yield step

    def _act(self, what: str, stage: int) -> None:
        if what == "forward":
            messages = self.stages[stage].step_ahead(self._activations[stage].popleft())
        else:
            messages = self.stages[stage].learn(self._gradients[stage].popleft())
        for message in messages:
            self._deliver(message, stage)

    def _deliver(self, message: Message, sender: int) -> None:
        if isinstance(message, Activation):
            self._activations[sender + 1].append(message)
        elif isinstance(message, Gradient):
            self._gradients[sender - 1].append(message)

    def _output(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        data, label = batch
        message = Activation(edge=self.stages[0].above, step=self.step, tensors=(data,), label=label, training=False)
        for stage in self.stages:
            message = stage.evaluate(message)
        return message.tensors[0], None if label is None else label.to(message.tensors[0].device)

    @torch.no_grad()
    def _loss(self, output: Tensor, label: Tensor | None) -> Tensor:
        signal = self.stages[-1].signal
        assert isinstance(signal, Loss)
        return signal.function(output, label)

    def _report(self) -> StepReport:
        loss = self.stages[-1].signal.loss
        return StepReport(self.step - 1, self._samples, float("nan") if loss is None else float(loss))
