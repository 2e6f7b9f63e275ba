"""How far a run is, as plain lines: where there is no terminal, or nobody wants a view."""

from __future__ import annotations

from datetime import timedelta

from rich.console import Console

from .monitor import RunState
from .screen import say

__all__ = ["Lines"]


class Lines:
    """Prints a line from time to time.

    Args:
        console: Where.
        every: Seconds between two lines.
    """

    def __init__(self, console: Console, every: float = 5.0) -> None:
        self._console = console
        self._every = every
        self._printed: tuple[float, int] = (0.0, 0)

    def show(self, state: RunState, *, last: bool = False) -> None:
        """Print how the run is, unless it was done a moment ago."""
        seconds, step = self._printed
        if state.step > step and (state.seconds - seconds >= self._every or last or not step):
            self._printed = (state.seconds, state.step)
            say(self._console, line_of(state))


def line_of(state: RunState) -> str:
    """Return how a run is, in a line."""
    total = state.facts.total_steps
    words = [f"step {state.step}" if total is None else f"step {state.step}/{total}"]
    loss = state.stages[-1].loss
    words += [] if loss is None else [f"loss {loss:.4f}"]
    words += [f"{name} {value:.4f}" for name, value in state.metrics.items() if name != "loss"]
    words += [] if state.eta is None else [f"eta {timedelta(seconds=round(state.eta))}"]
    words += [f"{state.samples_per_second:,.0f} samples/s"] if state.samples_per_second else []
    baseline = state.facts.baseline
    words += [f"{state.speedup:.2f}x {baseline.schedule}"] if baseline and state.speedup is not None else []
    return " ".join(words)
