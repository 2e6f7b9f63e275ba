"""What the dashboard draws, compared as text with frames that were looked at: tests/frames/.

After a change on purpose: UPDATE_FRAMES=1 python -m pytest tests/test_dashboard.py, and look at the difference.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text
from states import facts, monitor

from stepahead.launch.dashboard import View, draw
from stepahead.launch.lines import line_of
from stepahead.launch.monitor import Monitor, RunState
from stepahead.launch.shapes import ASCII, GLYPHS, sparkline
from stepahead.launch.sketch import StageNodes, sketch, sketch_svg

FRAMES = Path(__file__).parent / "frames"
WIDTHS = (50, 80, 120, 200)
SKIPPED = tuple(f"skipped_{number}" for number in range(4))
NODES = (
    StageNodes(
        0,
        (("enter", "input"), ("down", "enter"), *((name, "enter") for name in SKIPPED)),
        ("enter [16x8x8]", "down [32x4x4]", *(f"{name} [16x64x64]" for name in SKIPPED)),
    ),
    StageNodes(1, (("up", "down", "enter"), ("image", "up", *SKIPPED)), ("image [1x8x8]",)),
)


def frame(state: RunState, width: int, height: int = 24, **view: Any) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115
    with console.file:
        for line in draw(state, View(width=width, height=height, **view)):
            console.print(line, no_wrap=True, overflow="crop")
        return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def run(stages: int = 4) -> RunState:
    """Return a run in which one stage waits, one is stopped, and one has a GPU; its model is a graph."""
    state = monitor(stages, graph=NODES).state()
    state.stages[1].state, state.stages[1].state_seconds = "waits for a batch", 1.2
    state.stages[-1].state = "stopped"
    state.notes.append("stage 3 is stopped (by a signal, at about step 400); kill -CONT 4711 lets it go on")
    return state


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("name", "stages", "view"),
    [
        ("few", 4, {"keys": "q leave  h help"}),
        ("many", 64, {"keys": "q leave  h help", "height": 16}),
        ("detail", 4, {"detail": 1}),
        ("ascii", 2, {"glyphs": ASCII}),
        ("nodes", 2, {"page": "nodes"}),
    ],
)
def test_frames_are_as_they_were_when_somebody_looked(name: str, stages: int, width: int, view: dict[str, Any]) -> None:
    drawn = frame(run(stages), width, **view)
    file = FRAMES / f"{name}-{width}.txt"
    if os.environ.get("UPDATE_FRAMES"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(drawn)
    assert drawn == file.read_text()


@pytest.mark.parametrize("width", range(20, 221, 7))
@pytest.mark.parametrize("stages", [2, 5, 64])
@pytest.mark.parametrize("height", [1, 3, 10, 50])
def test_nothing_is_wider_or_higher_than_the_screen(width: int, stages: int, height: int) -> None:
    views: list[dict[str, Any]] = [{}, {"detail": 0}, {"page": "nodes"}]
    for shown in views:
        lines = draw(run(stages), View(width=width, height=height, keys="q leave", **shown))
        assert 1 <= len(lines) <= height
        assert max(line.cell_len for line in lines) <= width


@pytest.mark.parametrize("width", [*range(1, 60, 6), 49])
def test_a_run_that_has_said_nothing_can_be_shown(width: int) -> None:
    state = Monitor(facts(3)).state()
    for height in (1, 8, 20):
        for detail in (None, 1):
            assert draw(state, View(width=width, height=height, detail=detail))


@pytest.mark.parametrize("width", WIDTHS)
def test_with_telemetry_off_no_share_is_shown(width: int) -> None:
    for stages, height in ((4, 24), (64, 16)):
        state = run(stages)
        for stage in state.stages:
            stage.useful, stage.tax, stage.idle, stage.gpu = None, None, {}, None
        rows = frame(state, width, height)
        assert "%" not in rows.replace(" 50%", "")  # of the run, in the header
        assert "worst" not in rows
        assert "where its time goes is not known yet" in frame(state, width, detail=1)


def shown(text: str) -> list[int]:
    """Return the stages that have a row."""
    return [int(line.split()[0]) for line in text.splitlines() if line[:1].isdigit() and "%" in line]


def test_the_worst_of_the_folded_may_be_beside_the_others() -> None:
    for worst in (1, 2, 61, 62):
        state = run(64)
        state.stages[worst].idle = {"other": 9.0}
        rows = shown(frame(state, 80, 14))
        assert worst in rows
        assert rows == sorted(set(rows))


def test_what_has_no_column_goes_below_while_there_is_room() -> None:
    assert "steps/s 40.0" in frame(run(), 80)
    assert "steps/s" not in frame(run(12), 80)
    for width in WIDTHS:
        for figure in ("40.0", "2 3", "1/4", "2/2", "0.264", "0.314", "212M", "a batch"):
            assert figure in frame(run(), width, 40)


def test_the_middle_is_folded_and_the_worst_is_named() -> None:
    state = run(64)
    state.stages[31].useful, state.stages[31].idle = 0.0, {"wait_credit": 1.0}
    text = frame(state, 80, 14)
    assert "29 more, worst 31: idle 100%, for room to send" in text
    assert "30 more\n" in text
    assert shown(text) == [0, 1, 31, 62, 63]
    few_lines = frame(state, 80, 8)
    assert "61 more, worst 31: idle 100%, for room to send" in few_lines
    assert shown(few_lines) == [0, 1, 63]
    assert "31 idles 100%" in frame(state, 40)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_name_leaves_room_for_the_figures(width: int) -> None:
    state = run()
    state.facts = replace(state.facts, job="/home/me/projects/that_people_have/train_the_model_for_my_paper.py")
    text = frame(state, width)
    assert "step 400/800" in text
    assert "28,800 samples/s" in text
    assert "for_my_paper.py" in text


def test_what_is_cut_off_is_said() -> None:
    for height in (10, 14, 18):
        lines = frame(run(), 80, height, detail=1).splitlines()
        assert len(lines) <= height
        assert any("more lines, in a higher window" in line for line in lines)
    assert "more lines" not in frame(run(), 80, 40, detail=1)


def test_the_worst_is_named_where_no_line_is_left_for_each() -> None:
    assert "worst 3: idle 45%, for a batch" in frame(run(8), 50, 20)
    assert "worst" not in frame(run(8), 200, 24)


def test_a_timeline_of_many_stages_is_folded() -> None:
    state = run(64)
    spans = [(100 * n + 1, 100 * n + 90, n, "forward") for n in range(10)]
    state.recent = [list(spans) for _ in range(64)]
    lines = frame(state, 80, 24, page="timeline").splitlines()
    assert len(lines) <= 24
    rows = [line.split()[0] for line in lines if line[:1].isdigit() and "f" in line]
    assert rows[0] == "0"
    assert rows[-1] == "63"
    assert f"{64 - len(rows)} more" in lines
    assert any("f forward" in line for line in lines)


def test_the_source_of_the_baseline_is_said() -> None:
    assert "1.80x lockstep (measured)" in frame(run(), 80)
    baseline = run().facts.baseline
    assert baseline is not None
    state = run()
    state.facts = replace(state.facts, baseline=replace(baseline, source="runs/first"))
    assert "1.80x lockstep (runs/first)" in frame(state, 80)
    state.facts = replace(state.facts, baseline=None, virtual=True)
    assert "decoupled, no baseline" in frame(state, 80)
    assert "virtual devices" in frame(state, 80)


def test_bars_show_useful_tax_idle_and_the_baseline() -> None:
    bar = next(line for line in frame(run(2), 80).splitlines() if line.startswith("0"))
    shape = bar.split()[2]
    assert set(shape) == {"█", "▒", "·", "│"}
    assert shape.index("│") == round(0.25 * len(shape))
    assert shape.rstrip("·").count("█") + 1 == round(0.8 * len(shape))


def test_a_gpu_has_a_column_where_there_is_one() -> None:
    state = run()
    assert "gpu" not in frame(state, 200)
    state.stages[0].gpu = (0.93, 61.0)
    assert "93% 61C" in frame(state, 200)


def test_every_state_has_a_word_and_a_shape_of_its_own() -> None:
    for glyphs in (GLYPHS, ASCII):
        assert len(set(glyphs.states.values())) == len(glyphs.states)
    assert all(ord(letter) < 128 for letter in frame(run(), 120, glyphs=ASCII) if letter != "\n")


def test_sparklines() -> None:
    assert sparkline([], 10, GLYPHS) == ""
    assert sparkline([1.0, 1.0], 10, GLYPHS) == "▁▁"
    assert sparkline([0.0, 0.5, 1.0], 10, GLYPHS) == "▁▅█"
    assert len(sparkline([float(n) for n in range(60)], 12, GLYPHS)) == 12


def test_a_line_says_it_all() -> None:
    said = "step 400/800 loss 0.2642 accuracy 0.9412 eta 0:00:10 28,800 samples/s 1.80x lockstep"
    assert line_of(monitor(4).state()) == said


def test_drawing_changes_nothing() -> None:
    state = run()
    before = state.as_dict()
    assert isinstance(draw(state, View(width=80, height=24))[0], Text)
    assert state.as_dict() == before


@pytest.mark.parametrize("width", WIDTHS)
def test_further_guesses_are_shown_where_there_are_any(width: int) -> None:
    state = run()
    assert "guessed to" not in frame(state, width, detail=1)
    state.stages[1].inputs_error, state.stages[1].windows_cosine = 0.35, 0.61
    drawn = frame(state, width, detail=1)
    assert "inputs  guessed to 0.35 of their length" in drawn
    assert "windows cosine 0.61 at their ends" in drawn


def test_the_graph_comes_through_a_recording() -> None:
    state = run(2)
    again = RunState.from_dict(json.loads(json.dumps(state.as_dict())))
    assert again.facts.graph == state.facts.graph == NODES


def test_the_report_draws_the_graph() -> None:
    drawn = sketch_svg(NODES)
    names = ["input", "enter", "down", "up", "image", *SKIPPED]
    assert all(f">{name}</text>" in drawn for name in names)
    assert drawn.count('class="edge"') == 13


def test_what_is_used_a_batch_later_is_drawn_apart() -> None:
    nodes = (StageNodes(0, (("ask", "input", "answer:earlier"), ("answer", "ask")), ("answer [6]",)),)
    assert sketch_svg(nodes).count('class="edge earlier"') == 1
    assert "ask <- input, answer (earlier)" in "\n".join(line.plain for line in sketch(nodes, 60, GLYPHS))


def test_a_chain_has_no_graph_to_show() -> None:
    assert "the model is a chain of layers" in frame(monitor(2).state(), 80, page="nodes")
