"""The options that name a network of one's own in place of a search space, the same on every command line."""

import argparse
from typing import Any

from nni_blockswap.errors import ConfigError
from nni_blockswap.key_values import add_key_values, key_values


def add_own_network(command: argparse.ArgumentParser) -> None:
    """Declare ``--model``, ``--model-arg``, ``--input-size``, ``--include`` and ``--exclude``."""
    own = command.add_argument_group("in place of a space, a network of your own")
    own.add_argument("--model", metavar="MODULE:FUNCTION", help="what returns it, such as torchvision.models:resnet50")
    add_key_values(own, "--model-arg", about="arguments of the function")
    own.add_argument("--input-size", metavar="C,H,W", help="of one image (default 3,224,224)")
    own.add_argument(
        "--include", nargs="+", action="extend", metavar="PATTERN", help="swap below these module paths alone"
    )
    own.add_argument(
        "--exclude", nargs="+", action="extend", metavar="PATTERN", help="leave what is below these module paths"
    )


def own_network(options: argparse.Namespace) -> dict[str, Any]:
    """What those options say, as ``spaces.with_space`` takes it. Raises ConfigError for what is no image's size."""
    return {
        "model": options.model,
        "model_args": key_values(options.model_arg, "--model-arg"),
        "input_size": _size(options.input_size),
        "include": options.include,
        "exclude": options.exclude,
    }


def _size(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise ConfigError(f"--input-size is channels, height and width, as in 3,224,224; not '{text}'.")
    return [int(part) for part in parts]
