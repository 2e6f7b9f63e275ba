"""Pictures of entries; they need matplotlib (the extra `report`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from .entry import Figures

__all__ = ["draw_curves", "draw_gaps", "draw_layers", "draw_ratios", "draw_readings"]

TICKS, CLOSE_TICKS = (0.5, 1, 2, 5, 10, 20, 50), (1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80)
"""The second where all lies within one power of ten or less."""
COLOURS, MANY = 10, 6
"""After so many lines colours come again, dashed; more than so many names go beside the picture."""
GAP = 1e-4
"""Below that two losses are the same."""


def draw_curves(results: Mapping[str, Figures], file: Path, label: str = "test error, %") -> None:
    """Draw errors over steps, a panel for each group of trials that share their first words; and the guesses."""
    panels: dict[str, dict[str, Figures]] = {}
    for key, line in results.items():
        if key.endswith("seed 0"):
            first, *rest = key.removesuffix(", seed 0").split(", ")
            panels.setdefault(first if rest else "", {})[", ".join(rest) or first] = line
    _draw_guesses(panels, file.with_name(f"{file.stem}-guesses{file.suffix}"))
    figure, axes = _panels(len(panels), label)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, line in lines.items():
            steps, errors = zip(*line["curve"], strict=True)
            axis.plot(steps, errors, "--" if axis.lines[COLOURS - 1 :] else "-", label=name, linewidth=1.4)
        _scale(axis, [error for line in lines.values() for _, error in line["curve"]])
        axis.set_title(title)
        axis.set_xlabel("steps")
        beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)} if len(lines) > MANY else {}
        axis.legend(fontsize=7, frameon=False, **beside)
    _save(figure, file)


def _draw_guesses(panels: Mapping[str, Mapping[str, Figures]], file: Path) -> None:
    """Draw the cosine of each interface's guess and the gradient that came, over steps; of many some."""
    guessing = {
        title: {name: line for name, line in lines.items() if line["quality"] and line["quality"][-1]}
        for title, lines in panels.items()
    }
    guessing = {title: lines for title, lines in guessing.items() if lines}
    if not guessing:
        return
    figure, axes = _panels(len(guessing), "cosine of guess and gradient")
    for axis, (title, lines) in zip(axes, guessing.items(), strict=True):
        for colour, (name, line) in enumerate(lines.items()):
            interfaces = len(line["quality"][-1])
            for interface in range(0, interfaces, max(interfaces // 4, 1)):
                readings = zip(line["curve"], line["quality"], strict=True)
                read = [(step, each[interface][0]) for (step, _), each in readings if each]
                strength = 0.3 + 0.7 * (interface + 1) / interfaces
                label = name if interface == 0 else None
                axis.plot(*zip(*read, strict=True), f"C{colour}", alpha=strength, label=label, linewidth=1.4)
        axis.set_ylim(-0.1, 1.05)
        axis.locator_params(axis="x", nbins=5)
        axis.set_title(title)
        axis.set_xlabel("steps")
        axis.legend(fontsize=7, frameon=False)
    _save(figure, file)


def draw_layers(results: Mapping[str, Figures], file: Path) -> None:
    """Draw what the layers look like in nets of 10 and 20; of sigmoids in a picture of their own."""
    for kind in ("", "sigmoid"):
        found = {key: line for key, line in results.items() if ("sigmoid" in key) == bool(kind)}
        if found:
            _draw_layers(found, file.with_name(f"{file.stem}-{kind}{file.suffix}") if kind else file)


def _draw_layers(results: Mapping[str, Figures], file: Path) -> None:
    """Draw likeness to the last, probes, lengths of weights."""
    names = {"likeness": "like the last hidden layer", "probe": "linear probe, error %", "norms": "length of weights"}
    figure, axes = _panels(len(names), "")
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for key, line in results.items():
            if name in line and key.startswith(("10 ", "20 ")) and key.endswith("seed 0"):
                style = "-" if "backprop" in key else "--"
                axis.plot(line[name], style, label=key.removesuffix(", seed 0"), linewidth=1.4)
        axis.set_title(title)
        axis.set_xlabel("layer")
        axis.legend(fontsize=7, frameon=False)
    _save(figure, file)


Readings = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""By panel and by line: what was read when."""


def draw_readings(panels: Readings, along: str, label: str, file: Path, *, counts: bool = False) -> None:
    """Draw a panel for each title, with a line for each name: on a scale of powers, or counts as steps."""
    figure, axes = _panels(len(panels), label)
    most = max(value for lines in panels.values() for readings in lines.values() for _, value in readings)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for (name, readings), style in zip(lines.items(), cycle(["-", "--"])):
            how = {"drawstyle": "steps-post"} if counts else {}
            axis.plot(*zip(*readings, strict=True), style, label=name, linewidth=1.4, **how)
        if counts:
            axis.set_ylim(0, 1.1 * most)
        else:
            _scale(axis, [value for readings in lines.values() for _, value in readings])
        axis.set_title(title)
        axis.set_xlabel(along)
        axis.legend(fontsize=7, frameon=False)
    _save(figure, file)


def draw_gaps(panels: Mapping[str, Mapping[str, list[list[float]]]], kinds: Sequence[str], file: Path) -> None:
    """Draw gaps as points, a column for each kind of data: near zero on a straight scale, beyond it one of powers."""
    figure, axes = _panels(len(panels), "loss on a guess - by backprop", each=4.6)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for number, (name, gaps) in enumerate(lines.items()):
            places = [kind + 0.8 * number / len(lines) for kind, each in enumerate(gaps) for _ in each]
            axis.plot(places, [gap for each in gaps for gap in each], ".", label=name, markersize=4)
        axis.set_yscale("symlog", linthresh=GAP)
        axis.axhspan(-GAP, GAP, color="0.9")
        axis.set_xticks([kind + 0.4 for kind in range(len(kinds))], kinds, fontsize=7, rotation=25)
        axis.set_title(title)
        axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    _save(figure, file)


def draw_ratios(results: Mapping[str, Figures], file: Path) -> None:
    """Draw the ratio of the bound over steps: below 0 the loss must fall."""
    figure, (axis,) = _panels(1, "log of the bound's ratio")
    for key, line in results.items():
        if "log ratio" in line:
            axis.plot(*zip(*line["log ratio"], strict=True), label=key.removeprefix("monitor, "), linewidth=1.4)
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.set_xlabel("steps")
    axis.legend(fontsize=7, frameon=False)
    _save(figure, file)


def _panels(count: int, label: str, each: float = 3.6) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(each * count if count > 1 else 6.4, 3.2), squeeze=False)
    axes[0][0].set_ylabel(label)
    return figure, list(axes[0])


def _scale(axis: Any, seen: Sequence[float]) -> None:
    """Scale upwards by powers, with plain numbers."""
    axis.set_yscale("log")
    ticks = CLOSE_TICKS if max(seen) < 8 * min(seen) else TICKS
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ylim(0.8 * min(seen), 1.2 * max(seen))
    axis.minorticks_off()
    axis.locator_params(axis="x", nbins=5)


def _save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot

    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
