"""The papers' experiments.

    python -m benchmarks.papers list                            what there is
    python -m benchmarks.papers mnist-fcn sporadic --data DIR   run entries; --full for as long as the papers did
    python -m benchmarks.papers table                           what was measured, and the pictures

DIR holds mnist/ with the four idx files, cifar10/ with the binary batches, and text/tinyshakespeare.txt. A trial that
has been run is not run again; what each of them left is in `results/`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from stepahead.pipeline import StepaheadError

from . import asynchrony, choices, clocks, depth, feedforward, processes, recurrent, signals, theory
from .entry import Budget, Entry, Results

ENTRIES: dict[str, Entry] = {
    **feedforward.ENTRIES,
    **asynchrony.ENTRIES,
    **depth.ENTRIES,
    **choices.ENTRIES,
    **signals.ENTRIES,
    **processes.ENTRIES,
    **theory.ENTRIES,
    **recurrent.ENTRIES,
    **clocks.ENTRIES,
}
PICTURES = Path(__file__).parent.parent.parent / "docs" / "papers"


def run(name: str, budget: Budget, console: Console) -> None:
    """Run what an entry still lacks, and print its table."""
    entry, results = ENTRIES[name], Results(name, budget.name)
    done = results.read()
    left = [trial for trial in entry.trials(budget.full) if trial.key not in done]
    for number, trial in enumerate(left, start=1):
        results.run(trial, budget, f"{name} {number} of {len(left)}: {trial.key}")
    show(name, budget.name, console)


def show(name: str, budget: str, console: Console) -> None:
    """Print an entry's table, if there is anything to show."""
    if found := Results(name, budget).read():
        console.print(f"\n**{ENTRIES[name].title}** (`{name}`, {budget})\n", markup=False)
        console.print(ENTRIES[name].table(found))


def draw(name: str, budget: str) -> None:
    """Draw an entry's picture, where it has one."""
    figure, found = ENTRIES[name].figure, Results(name, budget).read()
    if figure is not None and found:
        figure(found, PICTURES / f"{name}-{budget}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="+", metavar="NAME", choices=[*ENTRIES, "all", "list", "table"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder with mnist/, cifar10/ and text/")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="short runs, for two cores (the default)")
    length.add_argument("--full", action="store_true", help="the papers' own number of steps and sizes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, budget = Console(width=150), Budget(options.full, options.data)
    for name in options.entries:
        if name == "list":
            for each, entry in ENTRIES.items():
                console.print(f"{each:12} {entry.title} ({len(entry.trials(options.full))} trials)", markup=False)
        elif name == "table":
            for each in ENTRIES:
                show(each, budget.name, console)
                draw(each, budget.name)
        else:
            for each in ENTRIES if name == "all" else (name,):
                run(each, budget, console)


if __name__ == "__main__":
    try:
        main()
    except StepaheadError as error:
        sys.exit(str(error))
