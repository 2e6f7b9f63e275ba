"""Pictures of entries; they need matplotlib (the extra `report`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .entry import Figures

__all__ = ["draw_curves", "draw_layers"]


TICKS, CLOSE_TICKS = (0.5, 1, 2, 5, 10, 20, 50), (1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80)
"""The second where all lies within one power of ten or less."""
COLOURS, MANY = 10, 6
"""After so many lines colours come again, dashed; more than so many names go beside the picture."""


def draw_curves(results: Mapping[str, Figures], file: Path) -> None:
    """Draw test errors over steps, a panel for each group of trials that share their first words; and the guesses."""
    panels: dict[str, dict[str, Figures]] = {}
    for key, line in results.items():
        if key.endswith("seed 0"):
            first, *rest = key.removesuffix(", seed 0").split(", ")
            panels.setdefault(first if rest else "", {})[", ".join(rest) or first] = line
    _draw_guesses(panels, file.with_name(f"{file.stem}-guesses{file.suffix}"))
    figure, axes = _panels(len(panels), "test error, %")
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, line in lines.items():
            steps, errors = zip(*line["curve"], strict=True)
            axis.plot(steps, errors, "--" if axis.lines[COLOURS - 1 :] else "-", label=name, linewidth=1.4)
        axis.set_yscale("log")
        seen = [error for line in lines.values() for _, error in line["curve"]]
        ticks = CLOSE_TICKS if max(seen) < 8 * min(seen) else TICKS
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ylim(0.8 * min(seen), 1.2 * max(seen))
        axis.minorticks_off()
        axis.locator_params(axis="x", nbins=5)
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
    """Draw what the layers look like in nets of 10 and 20: likeness to the last, probes, lengths of weights."""
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


def _panels(count: int, label: str) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(3.6 * count if count > 1 else 6.4, 3.2), squeeze=False)
    axes[0][0].set_ylabel(label)
    return figure, list(axes[0])


def _save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot

    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
