"""Recurrent cores over windows of a sequence, what comes after a window guessed in place of cut off.

Truncated backpropagation goes back through one window and takes the gradient at its end to be zero. Here a signal
guesses it, from the state there:

    window k     start --[ core: T steps ]--> end        losses of the window
                   |                           |
    backward     target <------------------- guess       both at once, with the losses' gradients
                   |
                 the signal learns: this is what its guess at the end of window k - 1 was to be

In place of a layer of a stage it needs nothing else: time is unlocked as depth is. In a loop of one's own:

    core = Recurrent(nn.LSTM(8, 256, batch_first=True), synthetic("mlp", hidden=256, optimizer=partial(Adam, lr=1e-4)))
    for x, y in windows:                    # follow each other; core.reset() before a new sequence
        loss = criterion(head(core(x)), y)
        optimizer.zero_grad()
        core.backward(loss)                 # in place of loss.backward()
        optimizer.step()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import Tensor, nn

from .answers import Answer
from .errors import UsageError
from .quality import QualityReading
from .randomness import keyed
from .signals import Needs, Signal, SignalRecipe
from .states import State, check_state, from_rows, map_state, rows_of, tensors_of

__all__ = ["Carried", "Core", "Recurrent", "Window", "forget_evaluation", "recurrent_in"]

FUTURE, AHEAD = 0, 1
"""Which of the signals."""
Core = Callable[[Tensor, State | None], tuple[Tensor, State]]
"""core(window, state) -> (outputs, state); window and outputs are [batch, steps, ..], the state of a new sequence None.
torch's RNN, GRU and LSTM are such, with batch_first=True; `Unrolled` makes one of a cell. State: see `batch_dim`."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What goes from window to window."""

    state: State | None = None
    """None before a sequence's first window."""
    count: int = 0
    """Windows of the sequence that have been."""
    label: Tensor | None = None
    """What the guess at the window's end was made with."""


@dataclass(slots=True, eq=False)
class Window:
    """One pass over a window: what goes back through it starts and ends here."""

    x: Tensor
    start: State | None
    """The state that was carried in, collecting its gradient; None at a sequence's start."""
    end: State
    """The state at its end, attached."""
    is_last: bool
    number: int
    """Of the windows that were run with a graph."""
    label: Tensor | None = None
    """Of its end, for the guess there."""
    start_label: Tensor | None = None
    reset: Tensor | None = None
    guess: Tensor | None = None
    """At its end, once asked for."""
    before: Window | None = None


@dataclass(slots=True, eq=False)
class _Boundary:
    """The start of a window, while its target is being made."""

    start: Tensor
    label: Tensor | None
    target: Tensor
    window: Window = field(repr=False)


class Recurrent(nn.Module):
    """A recurrent core that carries its state from window to window, and guesses the gradient at their ends.

    Args:
        core: See `Core`.
        future: Makes what guesses, from an example of the state, a row for each sequence; None truncates.
        scale: Times a guess when it is used. The targets are made of what was used.
        windows: How many windows a sequence has; after that many the state starts anew, and nothing is guessed. None:
            the sequence goes on until `reset` is called, or `last` is said.
        ahead: Makes an auxiliary head: at a window's start it guesses what `future` will say at its end, and what it
            missed flows into the core, so that the state comes to hold what that takes. It must propagate.
        ahead_scale: Times what flows so.
        span: Targets are made of the losses of so many windows, and of a guess only after those. The core runs again
            over each of them but the last.
        decay: Lambda: what a later window adds to a target counts for so much less with each window in between.
        batch_dim: Which dimension of the state counts sequences: 1 for torch's own cores, 0 for others, unless given.
        seed: Of what `future` and `ahead` draw.
    """

    window: Window | None
    """The one that was run last, until somebody goes back through it."""

    def __init__(
        self,
        core: Core,
        future: SignalRecipe | None = None,
        *,
        scale: float = 1.0,
        windows: int | None = None,
        ahead: SignalRecipe | None = None,
        ahead_scale: float = 1.0,
        span: int = 1,
        decay: float = 1.0,
        batch_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(core, windows, span, decay)
        if ahead is not None and future is None:
            raise UsageError("a head that guesses ahead guesses what `future` will say; give that too")
        self.core = core
        self.scale, self.windows, self.span, self.decay, self.seed = scale, windows, span, decay, seed
        self.ahead_scale = ahead_scale
        self.carried = self.evaluated = Carried()
        """In training, and in an evaluation."""
        self.window = None
        self.guesses = True
        """Whether windows that are run with a graph are to be gone back through from a guess."""
        self.steps = 0
        """Of the signals."""
        self._ran: Window | None = None
        self._count = 0
        self._batch = int(isinstance(core, nn.RNNBase)) if batch_dim is None else batch_dim
        self._recipes = future, ahead
        self._signals: list[Signal] = []  # in a list: their weights are not the model's
        self._past: deque[_Boundary] = deque()

    def forward(
        self, x: Tensor, *, reset: Tensor | None = None, last: bool = False, label: Tensor | None = None
    ) -> Tensor:
        """Run the core over the next window.

        Args:
            x: [batch, steps, ..].
            reset: For each sequence of the batch, whether a new one starts here.
            last: Whether all sequences end with this window.
            label: For the guess at the end, where the signal was made with classes.
        """
        carried = self.carried if self.training else self._evaluated_for(x)
        is_last = last or carried.count + 1 == self.windows
        state = None if carried.state is None else map_state(Tensor.detach, carried.state)
        guesses = self.guesses and self._recipes[FUTURE] is not None and self.training and torch.is_grad_enabled()
        if state is not None:
            self._check_batch(x, state)
            if guesses:
                state = map_state(Tensor.requires_grad_, state)
        outputs, end = self._run(x, self._renewed(state, reset))
        after = Carried() if is_last else Carried(map_state(Tensor.detach, end), carried.count + 1, label)
        if self.training:
            self.carried = after
        else:
            self.evaluated = after
        if guesses:
            self._note(Window(x.detach(), state, end, is_last, self._count, label, carried.label, reset))
        return outputs

    def reset(self) -> None:
        """Begin new sequences with the next window, in training and in an evaluation."""
        self.carried = self.evaluated = Carried()

    def pass_over(self, carried: Carried) -> None:
        """Carry on from there behind a window that is not to count; it was one of the sequence's all the same."""
        count = carried.count + 1
        self.carried = Carried() if count == self.windows else replace(carried, count=count)
        self.window = self._ran = None

    def __getstate__(self) -> dict[str, object]:
        """Return what a copy has too: not what is under way."""
        return {
            **self.__dict__,
            "carried": Carried(),
            "evaluated": Carried(),
            "window": None,
            "_ran": None,
            "_past": deque(),
        }

    def backward(self, loss: Tensor, *others: Recurrent) -> None:
        """Go back from a loss and from what is guessed to come after the window; then learn from what came of it.

        `others` are further cores that the loss depends on.
        """
        cores = [(core, window) for core in (self, *others) if (window := core.take_window())]
        pairs = [pair for core, window in cores for pair in core.pairs(window)]
        tensors, gradients = [tensor for tensor, _ in pairs], [gradient for _, gradient in pairs]
        torch.autograd.backward([loss, *tensors], [torch.ones_like(loss), *gradients])
        for core, window in cores:
            core.learn(window)

    def take_window(self) -> Window | None:
        """Return the window that was run last, if nobody has gone back through it, for somebody who will."""
        window, self.window = self.window, None
        return window

    def pairs(self, window: Window) -> list[tuple[Tensor, Tensor]]:
        """Return what to go back from besides the outputs of a window: tensors, and the gradients there."""
        if window.is_last:
            return []
        end = tensors_of(window.end)
        rows = rows_of([tensor.detach() for tensor in end], self._batch)
        future = self._signal(FUTURE, rows, window.label)
        guess = future.gradient(rows, window.label)
        if guess is None:
            return []
        window.guess = guess * self.scale
        pairs = list(zip(end, from_rows(window.guess, end, self._batch), strict=True))
        if self._recipes[AHEAD] is not None and window.before is not None and window.start is not None:
            pairs += self._pull(window.before, window)
        return [pair for pair in pairs if pair[0].requires_grad]

    def learn(self, window: Window) -> None:
        """Learn from what a window's backward pass left at its start."""
        if window.start is None:  # a new sequence: what is left of the old one is as good as it gets
            while self._past:
                self._teach(self._past.popleft())
            return
        start = tensors_of(window.start)
        found = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in start]
        for tensor in start:
            tensor.grad = None
        target = rows_of(found, self._batch)
        if self.span > 1:
            self._reach_back(window, target)
        rows = rows_of([tensor.detach() for tensor in start], self._batch)
        self._past.append(_Boundary(rows, window.start_label, target, window))
        if len(self._past) == self.span:
            self._teach(self._past.popleft())

    @property
    def quality(self) -> QualityReading | None:
        """How good the guesses are."""
        return self._signals[0].quality if self._signals else None

    def _reach_back(self, window: Window, target: Tensor) -> None:
        """Add to earlier targets what was missed at this boundary, as far as it goes back to them."""
        before = window.before
        if before is None or before.guess is None:
            return
        missed, number = target - before.guess, window.number
        for boundary in reversed(self._past):
            earlier, number = boundary.window, number - 1
            if earlier.number != number or earlier.start is None:
                return
            start = map_state(lambda tensor: tensor.detach().requires_grad_(), earlier.start)
            _, end = self._run(earlier.x, self._renewed(start, earlier.reset))
            ends, starts = tensors_of(end), tensors_of(start)
            gradients = torch.autograd.grad(
                ends, starts, from_rows(missed, ends, self._batch), allow_unused=True, materialize_grads=True
            )
            missed = self.decay * rows_of(gradients, self._batch)
            boundary.target = boundary.target + missed

    def _note(self, window: Window) -> None:
        """Take note of a window that will be gone back through."""
        if window.start is not None and (before := self._ran) is not None:
            window.before, before.before = before, None
        self.window = self._ran = window
        self._count += 1

    def _pull(self, before: Window, window: Window) -> list[tuple[Tensor, Tensor]]:
        """Let the head learn at the start of a window, and return what it missed, as a gradient at the state there.

        It goes back through the last step of the window before, run again: all of that window is over.
        """
        steps = before.x.shape[1]
        with torch.no_grad():
            state = self._renewed(before.start, before.reset)
            state = state if steps == 1 else self._run(before.x[:, : steps - 1], state)[1]
        _, end = self._run(before.x[:, steps - 1 :], None if state is None else map_state(Tensor.detach, state))
        ends, label, guess = tensors_of(self._renewed(end, window.reset)), window.start_label, window.guess
        assert guess is not None, "a head guesses what has been guessed"
        rows = rows_of([tensor.detach() for tensor in ends], self._batch)
        pull = self._signal(AHEAD, rows, label).learn(rows, label, guess, self.steps)
        if pull is None:
            return []
        return list(zip(ends, from_rows(self.ahead_scale * pull, ends, self._batch), strict=True))

    def _teach(self, boundary: _Boundary) -> None:
        future = self._signal(FUTURE, boundary.start, boundary.label)
        if future.wants(self.steps):
            future.learn(boundary.start, boundary.label, boundary.target, self.steps)
        self.steps += 1
        for signal in self._signals:
            signal.end_step()

    def _signal(self, which: int, rows: Tensor, label: Tensor | None) -> Signal:
        """Return what guesses the gradient here, or ahead; both are made when the first state is there."""
        if not self._signals:
            with keyed(self.seed, "boundary", device=rows.device):
                made = [recipe(rows, label) for recipe in self._recipes if recipe is not None]
            _check_signals(made)
            self._signals = made
        return self._signals[which]

    def _run(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        made: object = self.core(x, state)
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], Tensor):
            got = f"{len(made)} things" if isinstance(made, tuple) else f"a {type(made).__name__}"  # pyright: ignore
            raise UsageError(
                f"a recurrent core returns its outputs and its state; {type(self.core).__name__} gave {got}"
            )
        outputs, end = made  # pyright: ignore[reportUnknownVariableType]
        check_state(end, len(x), self._batch)
        return outputs, end

    @overload
    def _renewed(self, state: State, reset: Tensor | None) -> State: ...
    @overload
    def _renewed(self, state: State | None, reset: Tensor | None) -> State | None: ...
    def _renewed(self, state: State | None, reset: Tensor | None) -> State | None:
        """Return a state that is zero where a new sequence starts."""
        if state is None or reset is None:
            return state

        def renew(tensor: Tensor) -> Tensor:
            shape = [1] * tensor.dim()
            shape[self._batch] = len(reset)
            return torch.where(reset.to(tensor.device, torch.bool).view(shape), torch.zeros_like(tensor), tensor)

        return map_state(renew, state)

    def _evaluated_for(self, x: Tensor) -> Carried:
        """Return what was carried on in an evaluation; a batch of another size begins new sequences."""
        state = self.evaluated.state
        fits = state is None or len(x) == tensors_of(state)[0].shape[self._batch]
        return self.evaluated if fits else Carried()

    def _check_batch(self, x: Tensor, state: State) -> None:
        carried = tensors_of(state)[0].shape[self._batch]
        if len(x) != carried:
            raise UsageError(
                f"a window of {len(x)} sequences follows one of {carried}; call reset() before other sequences, "
                f"say how many `windows` they have, or drop the last, shorter batch"
            )


def recurrent_in(module: nn.Module) -> list[Recurrent]:
    """Return the recurrent layers in a module."""
    return [layer for layer in module.modules() if isinstance(layer, Recurrent)]


def forget_evaluation(module: nn.Module) -> None:
    """Let the next evaluation begin with new sequences."""
    for layer in recurrent_in(module):
        layer.evaluated = Carried()


def _check(core: Core, windows: int | None, span: int, decay: float) -> None:
    if isinstance(core, nn.RNNBase):
        if not core.batch_first:
            raise UsageError(f"{type(core).__name__} has the batch second; make it with batch_first=True")
        if core.bidirectional:
            raise UsageError(
                f"{type(core).__name__} is bidirectional: its state goes both ways, and not on to a window"
            )
    if isinstance(core, nn.RNNCellBase):
        raise UsageError(
            f"{type(core).__name__} takes one step, not a window; make it Unrolled({type(core).__name__}(..))"
        )
    if windows is not None and windows < 1:
        raise UsageError(f"a sequence has {windows} windows; it must have at least 1")
    if span < 1:
        raise UsageError(f"targets are made of {span} windows; they need at least 1")
    if not 0.0 <= decay <= 1.0:
        raise UsageError(f"the decay is {decay}; it must lie between 0 and 1")


def _check_signals(signals: Sequence[Signal]) -> None:
    for signal in signals:
        if signal.needs is not Needs.NOTHING or signal.answer is not Answer.GRADIENT:
            raise UsageError(
                f"{type(signal).__name__} waits for {signal.needs.value} and learns from {signal.answer.value}; "
                f"at a window's end there is only a gradient, and that later"
            )
    if signals[FUTURE].pulls:
        raise UsageError("what `future` missed cannot flow into a window that is over; `ahead` can propagate")
    if len(signals) > 1 and not signals[AHEAD].pulls:
        raise UsageError("what `ahead` misses must flow into the core; make it synthetic(.., propagates=True)")
