"""What a person sees while a run goes on."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console

from stepahead.launch import Track
from stepahead.pipeline import StepReport


class Clock:
    """Moves by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def reports(clock: Clock, steps: int, seconds: float = 1.0) -> Iterator[StepReport]:
    for step in range(steps):
        clock.seconds += seconds
        yield StepReport(step, samples=32, loss=2.0)


def shown(file: io.StringIO, steps: int = 4, *, width: int = 80, every: float = 2.0, color: bool = False) -> str:
    clock = Clock()
    console = Console(file=file, width=width, force_terminal=color or None, color_system="standard" if color else None)
    track = Track(reports(clock, steps), total=steps, title="digits", console=console, every_seconds=every, now=clock)
    for report in track:
        if report.step == 1:
            track.note(accuracy=0.5)
    return file.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    assert shown(io.StringIO()).splitlines() == [
        "digits step 2/4 loss 2.0000 accuracy 0.5000 eta 0:00:02 32 samples/s",
        "digits step 4/4 loss 2.0000 accuracy 0.5000 eta 0:00:00 32 samples/s",
    ]


def test_a_last_line_however_short_the_run() -> None:
    line = "digits step 1/1 loss 2.0000 eta 0:00:00 32 samples/s"
    assert shown(io.StringIO(), steps=1, every=60).splitlines() == [line]


def test_a_forced_colour_moves_no_cursor_in_a_file() -> None:
    assert "\x1b" not in shown(io.StringIO(), color=True)


def test_a_bar_on_a_terminal() -> None:
    for width in (50, 80, 200):
        text = shown(Terminal(), width=width, color=True)
        assert "4/4" in text
        assert "accuracy 0.5000" in text
        assert "\x1b[?25h" in text  # the cursor is back


def test_a_batch_that_never_came_to_the_loss_leaves_it_as_it_was() -> None:
    """It said `loss nan` from then on."""
    clock, file = Clock(), io.StringIO()
    given = [StepReport(0, samples=32, loss=2.0), StepReport(1, samples=32, loss=float("nan"))]
    list(Track(iter(given), total=2, console=Console(file=file, width=80), every_seconds=0.0, now=clock))
    assert "loss 2.0000" in file.getvalue().splitlines()[-1]


def test_reports_pass_through() -> None:
    clock = Clock()
    track = Track(reports(clock, 3), total=3, console=Console(file=io.StringIO()), now=clock)
    assert [report.step for report in track] == [0, 1, 2]
