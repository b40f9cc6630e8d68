"""Teach every candidate of every block to do what the teacher's block does, before any student is put together.

Beside the space's own candidates there is W(r), the original narrowed inside, unless --space-arg extra=... says which.

Writes OUT/block_NN.safetensors, the weights of a block's candidates, OUT/errors.csv and OUT/library.json. State is on
disk as it goes: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nni_blockswap.cli.options import add_space_options, space_of
from nni_blockswap.cli.terminal import ProgressLine, spell_time
from nni_blockswap.data_options import add_data_set
from nni_blockswap.key_values import key_values

if TYPE_CHECKING:  # torch is imported when the work starts, not for --help
    from nni_blockswap.library.school import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_space_options(parser)
    parser.add_argument(
        "--teacher",
        metavar="WHICH",
        help="the original's weights: a checkpoint, torchvision:NAME or timm:NAME; a network of your own may come with "
        "its weights",
    )
    add_data_set(parser, required=True)
    for name, kind, default, letter, text in (
        ("steps", int, 160, "N", "of AdamW for each candidate; more can be given later"),
        ("batch-size", int, 96, "N", "images a step"),
        ("lr", float, 1e-2, "R", "first learning rate, falling to 0 as a cosine"),
        ("weight-decay", float, 1e-2, "W", "of AdamW"),
        ("held-out", int, 1024, "N", "training images that errors are measured on and nothing learns from"),
        ("seed", int, 0, "N", "of weights and minibatches"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=letter, help=f"{text} (default {default})")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--precision", default="float32", help="float32 (default) or bf16")
    parser.add_argument(
        "--blocks",
        nargs="+",
        action="extend",
        metavar="LABEL",
        help="with more --steps: only these of a finished library, as block_03",
    )
    parser.add_argument(
        "--blocks-at-once",
        type=int,
        metavar="N",
        help="blocks that a process has in memory together (default: all)",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="that teach side by side (default: one a core, or one a GPU)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the library")


def run(options: argparse.Namespace) -> int:
    """Build, and show the errors."""
    from nni_blockswap.library.building import build
    from nni_blockswap.library.settings import LibrarySettings

    start = time.monotonic()
    own = {one.name for one in fields(LibrarySettings)} - {"space", "space_args", "data_options"}
    settings = LibrarySettings(
        **_with_widths(space_of(options)),
        data_options=key_values(options.data_option, "--data-option"),
        **{name: getattr(options, name) for name in own},
    )
    with ProgressLine(_steps) as shown:
        library = build(settings, options.out, shown)
    for label, errors in library.errors.items():
        print(label, "  ".join(f"{name} {error.value:.3f}" for name, error in errors.items()))
    print(f"{time.monotonic() - start:.1f} s, in '{options.out}'")
    return 0


def _with_widths(space: dict[str, Any]) -> dict[str, Any]:
    """The space with W(r) beside its own candidates, where it takes further ones and nobody says which."""
    from nni_blockswap.blocks.substitutes.narrowed import WIDTHS
    from nni_blockswap.spaces import complete_args

    given = space["space_args"]
    if "extra" in given or "extra" not in complete_args(space["space"], given):
        return space
    return {**space, "space_args": {**given, "extra": list(WIDTHS)}}


def _steps(progress: Progress) -> str:
    return f"{progress.done}/{progress.total} steps of blocks, {spell_time(progress.seconds_left)} left"
