"""Options that several subcommands share."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_blockswap.data_options import add_data_set
from nni_blockswap.errors import ConfigError, SpaceError
from nni_blockswap.key_values import add_key_values, key_values
from nni_blockswap.own_options import add_own_network, own_network
from nni_blockswap.trust import distrust, packages_in


def add_space_options(parser: argparse.ArgumentParser, *, positional: bool = False, required: bool = True) -> None:
    """The search space and its arguments."""
    text = "search space as module:Class, for example search_spaces.wide_resnet:WideResNetSpace"
    parser.set_defaults(needs_space=required, named=None)
    if positional:
        parser.add_argument("named", nargs="?", metavar="SPACE", help=text)
    parser.add_argument("--space", metavar="SPACE", help="the same, as other commands take it" if positional else text)
    add_own_network(parser)
    add_key_values(parser, "--space-arg", about="arguments of the space")


def space_of(options: argparse.Namespace) -> dict[str, Any]:
    """``space`` and ``space_args``, from the options above.

    Raises:
        ConfigError: neither a space nor a model is named, where one has to be; or a space twice.
    """
    from nni_blockswap.spaces import with_space

    if options.space is not None and options.named is not None:
        raise ConfigError(f"the space is named twice, '{options.named}' and '{options.space}'; name it once.")
    space = options.space if options.named is None else options.named
    if space is None and options.model is None and options.needs_space:
        raise ConfigError("name a search space with --space MODULE:CLASS, or a network with --model MODULE:FUNCTION.")
    arguments = key_values(options.space_arg, "--space-arg")
    return with_space({"space": space, "space_args": arguments, **own_network(options)})


def add_band_options(parser: argparse.ArgumentParser) -> None:
    """How much of a budget is to be used."""
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="make budgets bands: 0.025 is within 2.5 %% on both sides (default: 95 to 100 %% of the budget)",
    )
    parser.add_argument("--at-most", action="store_true", help="take everything that costs less than the budgets, too")


def add_search_space_file(parser: argparse.ArgumentParser) -> None:
    """A file that narrows the space."""
    parser.add_argument("--search-space-file", metavar="FILE", help="only the substitutes listed there (NNI's format)")


def add_score_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The data set and how a score is taken from it."""
    add_data_set(parser, required=required)
    for name, default, letter, text in (
        ("batch-size", 128, "N", "images in the minibatch"),
        ("seed", 0, "N", "of weights and minibatches, in a search of the samples too"),
        ("inits", 1, "K", "average over K draws of the weights"),
        ("minibatches", 1, "M", "average over M minibatches"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar=letter, help=f"{text} (default {default})")
    parser.add_argument(
        "--no-augment", dest="augment", action="store_false", help="take the minibatch without training augmentation"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument(
        "--precision", default="auto", help="auto (default: bf16 on CPUs that have it), float32, bf16, float64"
    )
    parser.add_argument("--processes", type=int, metavar="P", help="side by side on a CPU (default: one a core)")
    parser.add_argument("--recompute", action="store_true", help="less memory, more time, the same scores")


def score_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of ``scoring.settings.ScoreSettings`` from the options above and ``--space``."""
    return {
        **space_of(options),
        "data": options.data,
        "data_root": options.data_root,
        "data_options": key_values(options.data_option, "--data-option"),
        "batch_size": options.batch_size,
        "seed": options.seed,
        "inits": options.inits,
        "minibatches": options.minibatches,
        "augment": options.augment,
        "device": options.device,
        "precision": options.precision,
        "processes": options.processes,
        "recompute": options.recompute,
    }


def of_library(given: dict[str, Any], folder: str | None) -> dict[str, Any]:
    """Score settings with the library's data and arguments of the space, where the command line does not say.

    Raises:
        SpaceError: with the library's arguments there is no such space, or they name a package that no file may.
    """
    if folder is None:
        return given
    from nni_blockswap.library.library import Library, read_about
    from nni_blockswap.spaces import cost_table  # NNI comes with it, and takes seconds

    about: Mapping[str, Any] | None = read_about(Path(folder))
    if about is None:
        about = {"space": None} if given["data"] else Library.load(folder).about  # which says that there is none
    own = about["space_args"] if about["space"] == given["space"] else {}
    arguments = {**own, **given["space_args"]}
    if own:
        try:
            with distrust(packages_in([given["space"], given["space_args"]])):
                cost_table(given["space"], arguments)
        except SpaceError as error:
            raise SpaceError(f"with the arguments that the library in '{folder}' has: {error}") from error
    return {**given, "data": given["data"] or about["data"], "space_args": arguments}
