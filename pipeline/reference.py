"""The reference: all stages in one process, in the order of a schedule.

It is the oracle that processes are compared with, to the bit, and the short way for a researcher to train
decoupled without any. The stages are the very ones that workers run; only the links are missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal

from torch import Tensor

from .errors import UsageError
from .messages import Activation, Gradient
from .metrics import Averages, Metric, metrics_for
from .recurrent import forget_evaluation
from .schedules import exact_lag, free_lag, relayed_lag, schedule
from .signals import Loss
from .stage import Stage

__all__ = ["Batch", "LagMode", "Reference", "StepReport"]

Batch = tuple[Tensor, Tensor | None]
LagMode = Literal["exact", "free"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a run."""

    step: int
    samples: int
    loss: float
    """The loss on this step's batch, before the step; NaN for a batch that never came to the loss."""


class Reference:
    """Drives stages in one process.

    Args:
        stages: From `assemble`.
        lag: Steps after which a stage learns from a gradient, for all stages or for each: 1 is the papers'
            algorithm, 2 is what processes have.
        truth_lag: The same for truths that the stages below pass on; two steps more for each of those, unless given.
        mode: "exact" uses each gradient exactly `lag` steps later; "free" after 1 to `lag` steps, drawn from the
            stages' seed, as if links were slow at times.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        lag: int | Sequence[int] = 2,
        truth_lag: Sequence[int] | None = None,
        mode: LagMode = "exact",
    ) -> None:
        self.stages = list(stages)
        lags = _lags("lags", [lag] * len(stages) if isinstance(lag, int) else list(lag), len(stages))
        if mode not in ("exact", "free"):
            raise UsageError(f"mode is {mode!r}; it must be 'exact' or 'free'")
        if mode == "exact":
            derived = [relayed_lag(lags[stage], stage, len(stages)) for stage in range(len(stages) - 1)]
            relayed = derived if truth_lag is None else _lags("lags of the truth", list(truth_lag), len(stages))
            self._check_order(relayed)
            self._due = exact_lag(lags, relayed, self._awaits)
        else:
            self._due = free_lag(lags, stages[0].seed, self._awaits)
        self._activations: list[deque[Activation]] = [deque() for _ in stages]
        self._gradients: list[dict[int, Gradient]] = [{} for _ in stages]
        self._heard: list[dict[int, Activation]] = [{} for _ in stages]
        """What came from above for stages that have run on a guess of it."""
        self._samples = 0
        self._failed_at: int | None = None

    @property
    def step(self) -> int:
        """How many steps have been made."""
        return self.stages[0].step

    def train(self, batches: Iterable[Batch], steps: int | None = None) -> Iterator[StepReport]:
        """Train on each batch, at most `steps` of them, and yield a report after each.

        Between two reports the stages stand still after that step: a good moment to evaluate. At the end the
        gradients that are still on their way are learnt from.
        """
        self._drain()  # of an earlier run that its caller left where it was
        waits = [stage.waits for stage in self.stages]
        guessing = [stage.index for stage in self.stages if stage.inputs is not None]
        try:
            for actions in schedule(waits, self._due, self._feed(islice(batches, steps)), guessing):
                before = self.step
                for action in actions:
                    self._act(*action)
                if self.step > before:
                    yield self._report()
            self._drain()
        except GeneratorExit:  # the caller broke off its loop
            self._drain()
            raise

    def evaluate(self, batches: Iterable[Batch], metrics: Mapping[str, Metric] | None = None) -> dict[str, float]:
        """Return the mean loss and metrics over the batches, with all groups in eval mode."""
        averages = Averages(self._loss.measure, metrics_for(self.stages[-1].group, metrics or {}))
        for batch in batches:
            averages.add(*self._output(batch))
        for stage in self.stages:
            forget_evaluation(stage.group)
        return averages.take()

    def _feed(self, batches: Iterable[Batch]) -> Iterator[int]:
        """Hand each batch to the first stage, and to those that guess their inputs from it; yield its step."""
        for step, (data, label) in enumerate(batches, start=self.step):
            self._samples = len(data)
            for stage in self.stages:
                if stage.is_first or stage.inputs is not None:
                    batch = Activation(edge=stage.edge_above, step=step, tensors=(data,), label=label)
                    self._activations[stage.index].append(batch)
            yield step

    def _act(self, what: str, stage: int, step: int) -> None:
        try:
            for message in self._messages(what, stage, step):
                self._deliver(message, stage)
        except Exception:
            self._failed_at = step
            raise

    def _messages(self, what: str, stage: int, step: int) -> Iterator[Activation | Gradient]:
        if what == "forward":
            return self.stages[stage].step_ahead(self._activations[stage].popleft())
        if what == "hear":
            self.stages[stage].hear(self._heard[stage].pop(step))
            return iter(())
        return self.stages[stage].learn(self._gradients[stage].pop(step))

    def _awaits(self, stage: int, step: int) -> bool:
        return self.stages[stage].truth.awaits(step)

    def _check_order(self, relayed: Sequence[int]) -> None:
        using = [relayed[index] for index, stage in enumerate(self.stages) if stage.truth.every]
        if any(above <= below for above, below in pairwise(using)):
            raise UsageError(f"lags of the truth are {using}; they must fall: a stage has it from the one below")

    def _drain(self) -> None:
        """Learn from the gradients that are still on their way."""
        if self._failed_at is not None:
            raise UsageError(f"this run failed at step {self._failed_at}; assemble its stages again")
        for stage in reversed(range(len(self.stages))):  # from below: truths come up
            while self._heard[stage]:
                self._act("hear", stage, next(iter(self._heard[stage])))
            while self._gradients[stage]:
                self._act("learn", stage, next(iter(self._gradients[stage])))
            self.stages[stage].finish()

    def _deliver(self, message: Activation | Gradient, sender: int) -> None:
        if isinstance(message, Gradient):
            self._gradients[sender - 1][message.step] = message
        elif self.stages[sender + 1].inputs is not None:
            self._heard[sender + 1][message.step] = message
        else:
            self._activations[sender + 1].append(message)

    def _output(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        data, label = batch
        message = Activation(
            edge=self.stages[0].edge_above, step=self.step, tensors=(data,), label=label, training=False
        )
        for stage in self.stages:
            message = stage.evaluate(message)
        return message.tensors[0], message.label

    @property
    def _loss(self) -> Loss:
        signal = self.stages[-1].signal
        assert isinstance(signal, Loss), "the last of all stages steps on the loss"
        return signal

    def _report(self) -> StepReport:
        loss = self._loss.loss
        return StepReport(self.step - 1, self._samples, float("nan") if loss is None else float(loss))


def _lags(what: str, lags: list[int], stages: int) -> list[int]:
    if len(lags) not in (stages - 1, stages) or min(lags, default=1) < 1:
        raise UsageError(f"{what} {lags} do not suit {stages} stages; give one of at least 1 for all but the last")
    return lags
