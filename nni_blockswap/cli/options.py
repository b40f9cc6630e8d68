"""Options that several subcommands share."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from nni_blockswap.errors import ConfigError


def add_space_options(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """The search space, its arguments and a narrowing file."""
    text = "search space as module:Class, for example search_spaces.wide_resnet:WideResNetSpace"
    if positional:
        parser.add_argument("space", metavar="SPACE", help=text)
    else:
        parser.add_argument("--space", required=True, metavar="SPACE", help=text)
    parser.add_argument("--space-arg", action="append", default=[], metavar="NAME=VALUE", help="argument of the space; may be repeated")
    parser.add_argument("--search-space-file", metavar="FILE", help="only the substitutes listed there (NNI's format)")


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """["depth=16", "extra=[\\"BG(4,M/8)\\"]"] -> {"depth": 16, "extra": ["BG(4,M/8)"]}: values are JSON, else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"write NAME=VALUE, not '{pair}'.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
