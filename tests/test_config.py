"""Settings: what wins over what, and what is not a setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepahead.launch.config import CHOICES, Config, read_config, write_config
from stepahead.pipeline import UsageError


def test_a_word_that_no_file_could_hold_is_refused() -> None:
    with pytest.raises(UsageError, match=r"run_dir is 'a\\udcff', which is not UTF-8"):
        read_config(flags={"run_dir": "a\udcff"})
    assert read_config(flags={"run_dir": "ä"}).run_dir == "ä"


def test_flags_win_over_assignments_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('stages = 3\nseed = 3\nlag = "exact"\n[options]\nwidth = 3\ndepth = 3\n')
    assignments = ["seed=4", "steps=4", "options.width=4", "options.name=plain words", "options.on=true"]
    config = read_config(file, assignments, {"steps": 5, "epochs": None})
    assert (config.window, config.stages, config.lag, config.seed, config.steps) == (2, 3, "exact", 4, 5)
    assert config.epochs is None
    assert config.options == {"width": 4, "depth": 3, "name": "plain words", "on": True}


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    options = {"a": 1, "path": 'x"\\y', "list": [1, 2], "t": {"b": 1}}
    config = Config(job="digits", stages=4, timeout=2.5, ledger=True, options=options)
    write_config(config, tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stagse": 3}, "the command has an unknown setting 'stagse'; did you mean 'stages'?"),
        (
            {"job": {"steps": 3}},
            "the command sets a part of 'job', which is one value; options of a job are options.NAME",
        ),
        ({"stages": 0}, "stages is 0; it must be at least 1"),
        ({"stages": "four"}, "stages is 'four'; it must be a whole number"),
        ({"stages": True}, "stages is True; it must be a whole number"),
        ({"schedule": "decouple"}, "schedule is 'decouple'; did you mean 'decoupled'?"),
        ({"lag": "sometimes"}, "lag is 'sometimes'; known are: free, exact"),
        ({"timeout": 0}, "timeout is 0; it must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan; it must be a number of seconds above 0"),
        ({"seed": 2**70}, f"seed is {2**70}; it must be a number from 0 to 2^63 - 1"),
        ({"timeout": "long"}, "timeout is 'long'; it must be a number"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"window": 65}, "window is 65; a link may hold at most 64 messages"),
        ({"max_lag": 0}, "max_lag is 0; it must be at least 1"),
        ({"ledger": 1}, "ledger is 1; it must be true or false"),
        ({"options": 3}, "options is 3; it must be a table"),
    ],
)
def test_each_wrong_setting_is_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_config(flags=settings)
    assert str(caught.value) == said


def test_wrong_files_and_assignments_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the settings in .*none.toml cannot be read: No such file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("stages = = 3")
    with pytest.raises(UsageError, match=r"bad.toml is not TOML: "):
        read_config(tmp_path / "bad.toml")
    (tmp_path / "typo.toml").write_text("widow = 3")
    with pytest.raises(UsageError, match=r"typo.toml has an unknown setting 'widow'; did you mean 'window'\?"):
        read_config(tmp_path / "typo.toml")
    with pytest.raises(UsageError, match="--set stages says nothing; write --set name=value"):
        read_config(assignments=["stages"])


def test_dashes_are_as_good_as_underscores() -> None:
    assert read_config(assignments=["max-lag=4"]).max_lag == 4


def test_every_choice_is_taken() -> None:
    for name, choices in CHOICES.items():
        for choice in choices:
            assert getattr(read_config(flags={name: choice}), name) == choice
