"""Options of the form NAME=VALUE."""

import argparse

import pytest

from nni_blockswap.cli import parser
from nni_blockswap.errors import ConfigError
from nni_blockswap.key_values import add_key_values, key_values


def test_pairs_may_follow_each_other_and_options_be_repeated() -> None:
    command = argparse.ArgumentParser()
    add_key_values(command, "--space-arg", "--space-args", about="arguments of the space")
    given = command.parse_args(
        ["--space-arg", "depth=16", "width=2", "--space-args", "extra=[1]", "--space-arg", "b=x=y"]
    )
    assert key_values(given.space_arg, "--space-arg") == {"depth": 16, "width": 2, "extra": [1], "b": "x=y"}
    assert command.parse_args([]).space_arg == []  # and is not what an earlier line was given


@pytest.mark.parametrize("pair", ["depth", "=16"])
def test_what_is_no_pair_is_named(pair: str) -> None:
    with pytest.raises(ConfigError, match=f"--space-arg: write NAME=VALUE, not '{pair}'"):
        key_values([pair], "--space-arg")


def test_data_and_space_take_them_alike() -> None:
    words = (
        "search --space s:S --data digits --budget 40% --out o --data-option image_size=8 limit=9 --space-arg a=1 b=2"
    )
    given = parser().parse_args(words.split())
    assert (given.data_option, given.space_arg) == (["image_size=8", "limit=9"], ["a=1", "b=2"])
