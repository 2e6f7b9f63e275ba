"""From groups to stages: one recipe gives every stage its signal, its optimizer and its place."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from .answers import Answer, Asked
from .devices import parse_device
from .errors import UsageError
from .groups import Group, evaluating
from .inputs import InputRecipe, SyntheticInput
from .parted import signal_of
from .parts import Span, no_span
from .randomness import keyed
from .recurrent import forget_evaluation
from .signals import Asking, Loss, LossFunction, Needs, Signal, SignalRecipe, delayed
from .stage import NonFinitePolicy, Stage
from .truth import Truth
from .updates import LRScheduleRecipe, OptimizerRecipe, Updater

__all__ = ["Recipe", "assemble", "example_outputs"]

Entry = TypeVar("Entry")
OFF = Truth()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run's stages are made. A list has one entry for each stage; of signals, for each but the last.

    Example:
        Recipe(
            loss=nn.CrossEntropyLoss(),
            signal=synthetic("linear", classes=10, optimizer=partial(Adam, lr=3e-4)),
            optimizer=partial(AdamW, lr=1e-3),
            lr_schedule=lambda optimizer: MultiStepLR(optimizer, [2400, 3400]),
        )
    """

    loss: LossFunction
    signal: SignalRecipe | Sequence[SignalRecipe]
    """What every stage but the last steps on; those that step on the truth alone need none."""
    truth: Truth = OFF
    """What they do with the truth when it comes."""
    optimizer: OptimizerRecipe | Sequence[OptimizerRecipe | None] | None
    """Makes a stage's optimizer from its parameters; None freezes the stage's weights."""
    lr_schedule: LRScheduleRecipe | Sequence[LRScheduleRecipe | None] | None = None
    inputs: InputRecipe | None = None
    """Makes what stages guess their inputs with: all but the first then run on guesses, and wait for nobody."""
    chance: float = 1.0
    """Of each stage's to step on a batch, drawn for each by itself; what is left out costs it no backward pass."""
    clip: float | None = None
    """The most that the norm of one stage's gradient may be; stages do not wait for a common norm."""
    seed: int = 0
    on_non_finite: NonFinitePolicy = "stop"
    """What NaN or infinity does: "stop" raises, "skip" passes the batch over."""

    def __post_init__(self) -> None:
        if self.on_non_finite not in ("stop", "skip"):
            raise UsageError(f"on_non_finite is {self.on_non_finite!r}; it must be 'stop' or 'skip'")
        if self.clip is not None and self.clip <= 0:
            raise UsageError(f"clip is {self.clip}; a norm to clip to must be above 0")
        if not 0.0 < self.chance <= 1.0:
            raise UsageError(f"stages step with a chance of {self.chance}; it must be above 0 and at most 1")
        if self.truth.use != "off" and (self.chance < 1.0 or self.inputs is not None):
            what = "stages that leave batches out" if self.chance < 1.0 else "stages with synthetic inputs"
            raise UsageError(f"{what} have no truth to pass on; leave the truth off")

    def stage(
        self,
        group: Group,
        index: int,
        stages: int,
        output: Tensor,
        label: Tensor | None,
        *,
        above: tuple[Tensor, Tensor] | None = None,
        device: str | torch.device = "cpu",
        span: Span = no_span,
    ) -> Stage:
        """Make one stage, given an example of its group's output and of the label.

        For synthetic inputs it takes examples of the raw batch and of the group's input, too: `above`.
        """
        place = parse_device(device)
        group.to(place)
        return Stage(
            group,
            self._signal(group, index, stages, output.to(place), None if label is None else label.to(place)),
            self.updater(group, index, stages),
            index=index,
            stages=stages,
            seed=self.seed,
            truth=self.truth.at(index, stages),
            device=place,
            asked=self._asked_above(index, stages),
            inputs=self._inputs(index, above, place),
            unlocked=self.inputs is not None,
            chance=self.chance,
            on_non_finite=self.on_non_finite,
            span=span,
        )

    def loss_for(self, group: Group, device: torch.device) -> LossFunction:
        """Return the loss on a device, as a function of what the last group puts out."""
        if not isinstance(self.loss, nn.Module):
            return group.for_outputs(self.loss)
        if next(self.loss.parameters(), None) is not None:
            raise UsageError("the loss has parameters that nothing would train; make them part of the last layer")
        return group.for_outputs(deepcopy(self.loss).to(device))

    def _asked_above(self, index: int, stages: int) -> Asked:
        """Return what the stage above asks of this one."""
        asked = Asked() if index == 0 else self._asks(index - 1, stages)
        if asked.answer is Answer.ERROR and index < stages - 1 and self._asks(index, stages).answer is not Answer.ERROR:
            raise UsageError(
                f"stage {index - 1} asks for {asked.answer.value}; stage {index} must have a signal that gets it"
            )
        return asked

    def _asks(self, index: int, stages: int) -> Asked:
        """Return what a stage asks of the one below."""
        make = None if self.truth.is_late else _entry("signal", self.signal, index, stages - 1)
        answer, every = (make.answer, make.every) if isinstance(make, Asking) else (Answer.GRADIENT, 1)
        return Asked(answer, every, self.truth.at(index, stages).every)

    def _inputs(self, index: int, above: tuple[Tensor, Tensor] | None, device: torch.device) -> SyntheticInput | None:
        if self.inputs is None or index == 0:
            return None
        assert above is not None, "a stage with a synthetic input is made from examples of what it guesses"
        x, h = above
        with keyed(self.seed, index, "inputs", device=device):
            return self.inputs(x.to(device), h.to(device))

    def _signal(self, group: Group, index: int, stages: int, output: Tensor, label: Tensor | None) -> Signal:
        if index == stages - 1:
            return Loss(self.loss_for(group, output.device))
        make = delayed if self.truth.is_late else _entry("signal", self.signal, index, stages - 1)
        if isinstance(make, Signal) or not callable(make):
            raise UsageError(
                f"the signal of stage {index} is a {type(make).__name__}; give a function that makes one, "
                f"for example locked, or synthetic('linear', classes=10, optimizer=...)"
            )
        with keyed(self.seed, index, "signal", device=output.device):
            made = signal_of(group, make, output, label)
        if made.needs is Needs.OUTPUT_ERROR and made.answer is not Answer.ERROR:
            raise UsageError(
                f"{type(made).__name__} needs {made.needs.value}, which nothing sends unless it asks for it"
            )
        asks = self._asks(index, stages)
        if any(made.wants(step) and not asks.at(step) for step in range(2 * asks.every + 2)):
            raise UsageError(f"the signal of stage {index} learns more often than its recipe's `every` says")
        if made.answer is not asks.answer:
            raise UsageError(
                f"the signal of stage {index} asks for {made.answer.value}, and its recipe does not say so; "
                f"make it Asking(recipe, {type(made).__name__}.answer)"
            )
        return made

    def updater(self, group: Group, index: int, stages: int) -> Updater | None:
        """Make the optimizer of one group with its schedule; None for one that is frozen."""
        lr_schedule = _entry("lr_schedule", self.lr_schedule, index, stages)
        optimizer = _entry("optimizer", self.optimizer, index, stages)
        if optimizer is None:
            return None
        parameters = [parameter for parameter in group.parameters() if parameter.requires_grad]
        if not parameters:
            raise UsageError(
                f"stage {index} ({group.title}) has no parameters to train; cut elsewhere, "
                f"or give this stage the optimizer None"
            )
        rate, owner = self.truth.at(index, stages).rate, f"stage {index} ({group.title})"
        return Updater(parameters, optimizer, lr_schedule, clip=self.clip, rate=rate, owner=owner)


def assemble(
    groups: Sequence[Group],
    example: tuple[Tensor, Tensor | None],
    recipe: Recipe,
    *,
    devices: str | torch.device | Sequence[str | torch.device] = "cpu",
) -> list[Stage]:
    """Make all stages of a model, given one batch and its label as an example.

    The groups are moved to `devices`: one for all stages, or one for each.
    """
    data, label = example
    if not isinstance(devices, (str, torch.device)) and len(devices) != len(groups):
        raise UsageError(f"the list of devices has {len(devices)} entries, and {len(groups)} are needed")
    outputs = example_outputs(groups, data)
    places = [devices] * len(groups) if isinstance(devices, (str, torch.device)) else list(devices)
    return [
        recipe.stage(
            group,
            index,
            len(groups),
            outputs[index],
            label,
            above=(data, outputs[index - 1]) if index else None,
            device=places[index],
        )
        for index, group in enumerate(groups)
    ]


def example_outputs(groups: Sequence[Group], data: Tensor) -> list[Tensor]:
    """Return what each group makes of an example, the groups' buffers and the random stream left as they were."""
    results: list[Tensor] = []
    h = data.clone()
    for group in groups:
        weight = next(group.parameters(), None)
        h = h if weight is None else h.to(weight.device)
        with evaluating(group), keyed(0, "example", device=h.device):
            h = group(h)
        forget_evaluation(group)
        results.append(h)
    return results


def _entry(name: str, value: Entry | Sequence[Entry], index: int, length: int) -> Entry:
    if not isinstance(value, (list, tuple)):
        return cast(Entry, value)
    entries = cast(Sequence[Entry], value)
    if len(entries) != length:
        raise UsageError(f"the list of {name} has {len(entries)} entries, and {length} are needed")
    return entries[index]
