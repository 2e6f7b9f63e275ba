"""Sequences to learn from: what is shown comes out again, texts go on, lengths grow when they are learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepahead.launch import Curriculum, copying, read_text, streams
from stepahead.pipeline import UsageError


def test_what_is_to_be_put_out_is_what_was_shown() -> None:
    task = copying(5, batch=3, bits=4, generator=torch.Generator().manual_seed(0))
    assert task.x.shape == (3, 12, 6)
    assert torch.equal(task.y[:, 7:, :4], task.x[:, 1:6, :4])
    assert task.x[:, 7:].count_nonzero() == 0
    assert task.counts.tolist() == [False] * 7 + [True] * 5
    assert task.y[:, :7].count_nonzero() == 0
    assert 20 < task.x[:, 1:6, :4].sum() < 40


def test_repetitions_are_told_and_their_end_is_to_be_marked() -> None:
    task = copying(2, 3, batch=1, bits=4)
    assert task.x.shape[1] == 2 + 2 * 3 + 3
    assert task.x[0, 3, 5] == pytest.approx(0.3)
    assert torch.equal(task.y[0, 4:10, :4], task.x[0, 1:3, :4].repeat(3, 1))
    assert task.y[0, 10].tolist() == [0.0] * 4 + [1.0]
    assert int(task.counts.sum()) == 7


def test_copying_gets_longer_when_it_is_learnt() -> None:
    curriculum = Curriculum(memory=2)
    assert curriculum.steps == (0, 0)
    for error in (1.0, 0.1, 0.1, 0.1, 0.1):
        curriculum.take(error)
    assert (curriculum.length, curriculum.repeats) == (3, None)
    assert curriculum.history == [(3, 1, None), (5, 2, None)]
    assert curriculum.steps == (2, 2)


def test_repeated_copying_takes_turns_and_counts_in_two_ways() -> None:
    curriculum = Curriculum(repeats=True, memory=1)
    seen: list[tuple[int, int | None]] = []
    for _ in range(7):
        seen.append((curriculum.length, curriculum.repeats))
        curriculum.take(0.0)
    assert seen == [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4)]
    assert curriculum.steps == (23, 19)


def test_streams_of_a_text_go_on_in_the_next_window(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefghij" * 20)
    text = read_text(tmp_path / "text.txt")
    assert (text.alphabet, len(text.train), len(text.test)) == ("abcdefghij", 180, 20)
    parts = list(streams(text.train, batch=3, window=4))
    assert len(parts) == 14
    for stream in range(3):
        read = torch.cat([x[stream] for x, _ in parts])
        assert torch.equal(read, text.train[59 * stream :][:56])
        assert torch.equal(torch.cat([y[stream] for _, y in parts]), text.train[59 * stream + 1 :][:56])


def test_texts_that_cannot_be_learnt_from_are_named(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe" * 100)
    for name, words in (("none.txt", "No such file"), ("short.txt", "has 9 characters"), ("binary.txt", "codec")):
        with pytest.raises(UsageError, match=words):
            read_text(tmp_path / name)
    with pytest.raises(UsageError, match="no window of 8 for each of 20 streams"):
        next(streams(torch.zeros(150, dtype=torch.long), 20, 8))
