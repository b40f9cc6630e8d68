"""Options of the form NAME=VALUE, the same on every command line."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from nni_blockswap.errors import ConfigError


def add_key_values(command: "argparse._ActionsContainer", *names: str, about: str) -> None:
    """Declare an option, several pairs of which may follow each other, and which may be repeated."""
    command.add_argument(
        *names, nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=f"{about}; may be repeated"
    )


def key_values(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """What ``option`` was given: values are JSON where they can be read so, else text.

    Raises:
        ConfigError: one has no name or no "=".

    Example:
        >>> key_values(["depth=16", "name=x"], "--space-arg")
        {'depth': 16, 'name': 'x'}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option}: write NAME=VALUE, not '{pair}'.")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found
