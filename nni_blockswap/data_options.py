"""The options that name a data set, the same on every command line."""

import argparse
from collections.abc import Sequence

from nni_blockswap.key_values import add_key_values

CLASSIFICATION = ("digits", "cifar10", "cifar100", "image-folder", "imagenet")
DETECTION = ("coco",)
"""Names in ``tasks.TASKS``, which takes seconds to import, with torch."""


def add_data_set(
    command: "argparse._ActionsContainer",
    names: Sequence[str] = (*CLASSIFICATION, *DETECTION),
    *,
    default: str | None = None,
    required: bool = False,
) -> None:
    """Declare ``--data``, ``--data-root`` and ``--data-option``."""
    usual = "" if default is None else f" (default {default})"
    command.add_argument(
        "--data",
        required=required,
        default=default,
        metavar="NAME",
        help=f"data set: {', '.join(names)}, or module:function of your own{usual}",
    )
    command.add_argument("--data-root", metavar="DIR", help="folder of the data set")
    add_key_values(command, "--data-option", about="options of the data set")
