"""Progress of a run: a bar on a terminal, a plain line from time to time everywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from stepahead.pipeline import StepReport

__all__ = ["Track"]

SHORTEST_BAR = 8


class Track:
    """Passes a run's reports on and shows how far it is.

    Example:
        track = Track(reference.train(batches, steps=600), total=600)
        for report in track:
            if report.step % 100 == 99:
                track.note(accuracy=reference.evaluate(test)["accuracy"])
    """

    def __init__(
        self,
        reports: Iterable[StepReport],
        total: int | None,
        *,
        title: str = "",
        console: Console | None = None,
        every_seconds: float = 5.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reports = reports
        self.total = total
        self.title = title
        self.console = console or Console(emoji=False)
        self.every_seconds = every_seconds
        self.now = now
        self._notes: dict[str, float] = {}
        self._samples = self._done = 0
        self._loss: float | None = None

    def note(self, **figures: float) -> None:
        """Show these figures beside the loss from now on."""
        self._notes |= figures

    def __iter__(self) -> Iterator[StepReport]:
        # what FORCE_COLOR says is about colour: a pipe must never get cursor movements
        live = self.console.file.isatty() and not self.console.is_dumb_terminal
        with closing(self._with_bar() if live else self._with_lines()) as reports:
            yield from reports

    def _with_bar(self) -> Generator[StepReport]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[steps]} {task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console, expand=True, auto_refresh=False) as bar:
            task = bar.add_task(self.title, total=self.total, steps="", figures="")
            start = drawn = self.now()
            done = 0
            for report in self.reports:
                done = self._take(report)
                yield report
                if self.now() - drawn > 0.1:
                    drawn = self.now()
                    self._draw(bar, task, done, drawn - start)
            self._draw(bar, task, done, self.now() - start)

    def _draw(self, bar: Progress, task: TaskID, done: int, seconds: float) -> None:
        steps = self._steps(done)
        room = self.console.width - len(f"{self.title} {steps} ") - SHORTEST_BAR
        bar.update(task, completed=done, steps=steps, figures=self._figures(done, seconds, room), refresh=True)

    def _with_lines(self) -> Generator[StepReport]:
        start = printed = self.now()
        for report in self.reports:
            done = self._take(report)
            yield report
            if self.now() - printed >= self.every_seconds or done == self.total:
                printed = self.now()
                words = [self.title, "step", self._steps(done), self._figures(done, printed - start)]
                line = " ".join(word for word in words if word)
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _steps(self, done: int) -> str:
        return str(done) if self.total is None else f"{done}/{self.total}"

    def _take(self, report: StepReport) -> int:
        """Take a report in, and return how many steps are done."""
        self._samples += report.samples
        # the mean over the last ten steps or so, for one batch says little; a report may cover several
        done, self._done = self._done, report.step + 1
        if math.isnan(report.loss):  # of a batch that never came to the loss
            return self._done
        old = 0.0 if self._loss is None else 0.9 ** (self._done - done)
        self._loss = old * (self._loss or 0.0) + (1 - old) * report.loss
        return self._done

    def _figures(self, done: int, seconds: float, room: int | None = None) -> str:
        """Return the figures, the less important ones only as far as there is room."""
        words = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        words += [f"{name} {figure:.4f}" for name, figure in self._notes.items()]
        if seconds > 0:
            if self.total is not None:
                left = seconds / max(done, 1) * (self.total - done)
                words.append(f"eta {timedelta(seconds=round(left))}")
            words.append(f"{self._samples / seconds:,.0f} samples/s")
        while room is not None and len(words) > 1 and len(" ".join(words)) > room:
            words.pop()
        return " ".join(words)
