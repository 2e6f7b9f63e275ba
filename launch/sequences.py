"""Sequences to learn from: copying what was seen, the characters of a text.

Copying comes with the papers' curriculum: it gets longer as soon as it is learnt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from stepahead.pipeline import UsageError

__all__ = ["Copying", "Curriculum", "Text", "copied_steps", "copying", "numbered", "read_text", "streams"]


@dataclass(frozen=True, slots=True)
class Copying:
    """A batch of vectors of bits that are shown, and then to be put out as often as was said."""

    x: Tensor
    """[batch, steps, bits + 2]: the bits; a mark that the sequence begins; how often it is to be put out."""
    y: Tensor
    """[batch, steps, bits + 1]: the bits; a mark that it is over."""
    counts: Tensor
    """For each step, whether anything is to be put out."""


def copying(
    length: int, repeats: int | None = None, *, batch: int, bits: int = 8, generator: torch.Generator | None = None
) -> Copying:
    """Return a batch of Copy, 2 N + 2 steps long, or given `repeats` of Repeat Copy, N + N R + 3 steps long."""
    shown = torch.randint(2, (batch, length, bits), generator=generator).float()
    times, ends = (1, 0) if repeats is None else (repeats, 1)
    steps = 1 + length + 1 + length * times + ends
    x, y = torch.zeros(batch, steps, bits + 2), torch.zeros(batch, steps, bits + 1)
    x[:, 0, bits] = 1.0
    x[:, 1 : 1 + length, :bits] = shown
    x[:, 1 + length, bits + 1] = 1.0 if repeats is None else repeats / 10
    first = 2 + length
    y[:, first : first + length * times, :bits] = shown.repeat(1, times, 1)
    if ends:
        y[:, -1, bits] = 1.0
    return Copying(x, y, torch.arange(steps) >= first)


class Curriculum:
    """Makes the task longer when it is learnt: Copy by a vector, Repeat Copy by a vector and a repetition in turn.

    Args:
        repeats: Whether it is Repeat Copy.
        threshold: Bits of error below which a length counts as learnt, in the mean over a few batches.
        memory: So many batches.
    """

    def __init__(self, *, repeats: bool = False, threshold: float = 0.15, memory: int = 10) -> None:
        self.length = 1
        self.repeats = 1 if repeats else None
        self.threshold = threshold
        self.history: list[tuple[int, int, int | None]] = []
        """After so many batches this length, and so many repetitions, were learnt."""
        self._errors: deque[float] = deque(maxlen=memory)
        self._batches = 0

    def take(self, error: float) -> None:
        """Take the error of a batch in, in bits."""
        self._batches += 1
        self._errors.append(error)
        if len(self._errors) == self._errors.maxlen and mean(self._errors) < self.threshold:
            self.history.append((self._batches, self.length, self.repeats))
            self._errors.clear()
            if self.repeats is not None and self.length > self.repeats:
                self.repeats += 1
            else:
                self.length += 1

    @property
    def solved(self) -> tuple[int, int | None]:
        """The last N and R that were learnt; 0 before the first."""
        return self.history[-1][1:] if self.history else (0, None if self.repeats is None else 0)

    @property
    def steps(self) -> tuple[int, int]:
        """The length that was learnt, as `copied_steps` counts it."""
        return copied_steps(*self.solved)


def copied_steps(length: int, repeats: int | None) -> tuple[int, int]:
    """Return a task's length, counted in both ways that the papers' figures can be read in.

    For Copy these are N and N; for Repeat Copy N + N R + 3 steps in all, and the N R + 3 of them from the end of the
    vectors on.
    """
    if repeats is None:
        return length, length
    return (length + length * repeats + 3, length * repeats + 3) if length else (0, 0)


@dataclass(frozen=True, slots=True)
class Text:
    """A text as numbers of characters."""

    alphabet: str
    train: Tensor
    test: Tensor


def read_text(path: Path, *, test_share: float = 0.1) -> Text:
    """Return a text file's characters, the last of them to test on."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no text that can be read: {error}") from error
    if len(text) < 100:
        raise UsageError(f"{path} has {len(text)} characters; a text to learn from needs at least 100")
    return numbered(text, test_share)


def numbered(text: str, test_share: float) -> Text:
    """Return a text as numbers, the last of them to test on."""
    alphabet = "".join(sorted(set(text)))
    number = {character: index for index, character in enumerate(alphabet)}
    numbers = torch.tensor([number[character] for character in text])
    split = len(text) - int(test_share * len(text))
    return Text(alphabet, numbers[:split], numbers[split:])


def streams(text: Tensor, batch: int, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a text window by window, cut into as many streams as a batch has: each window goes on where the last ended.

    The label of a character is the next one.
    """
    each = (len(text) - 1) // batch
    if each < window:
        raise UsageError(f"a text of {len(text)} characters has no window of {window} for each of {batch} streams")
    x, y = text[: batch * each].view(batch, each), text[1 : batch * each + 1].view(batch, each)
    for start in range(0, each - window + 1, window):
        yield x[:, start : start + window], y[:, start : start + window]
