"""Correlate proxies with the final error of architectures that were trained (the paper's Table 1).

They come from an experiment's trials, its random architectures by budget, or from a CSV file with a column error and
either one column a block (block_00, block_01, ...) or a column choices with the substitutes in block order, separated
by spaces. Writes OUT/correlations.md and .csv, OUT/scores.csv, OUT/scatter.png; of an experiment in a folder a budget,
and OUT/table_1.md and .csv. Scores are on disk as they come: the same command goes on where it was stopped.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_blockswap.cli.options import add_score_options, add_space_options, of_library, score_settings
from nni_blockswap.errors import ConfigError
from nni_blockswap.trust import add_allow

if TYPE_CHECKING:
    from nni_blockswap.library.library import Library


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "trained", metavar="EXPERIMENT_ID|CSV", help="an experiment, or the folder of one, or a file with errors"
    )
    add_space_options(parser, required=False)
    add_score_options(parser, required=False)
    parser.add_argument("--proxies", nargs="+", action="extend", metavar="NAME", help="default: the paper's four")
    parser.add_argument(
        "--train-minibatches",
        nargs="+",
        type=int,
        default=(1, 10, 100),
        metavar="T",
        help="score on the T-th minibatch of training (default: 1 10 100; 1 is untrained)",
    )
    parser.add_argument(
        "--library", metavar="DIR", help="of the space and data, for the proxies library and library_log"
    )
    add_allow(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for scores, tables and scatter plot")


def run(options: argparse.Namespace) -> int:
    """Study and print the table."""
    from nni_blockswap.scoring.proxies import PAPER

    given = score_settings(options)
    proxies = options.proxies or list(PAPER)
    print(_of_csv(options, given, proxies) if Path(options.trained).is_file() else _of_trials(options, given, proxies))
    print(f"in '{options.out}'")
    return 0


def _of_trials(options: argparse.Namespace, given: dict[str, Any], proxies: list[str]) -> str:
    from nni_blockswap.cli.search import SearchLine
    from nni_blockswap.experiment.service import folder_of
    from nni_blockswap.studies.trained import study_experiment

    folders = [folder_of(options.trained)]
    settings = {name: value for name, value in given.items() if value not in (None, {})}  # those are the trials'
    with SearchLine() as shown:
        return study_experiment(
            folders, settings, proxies, options.train_minibatches, options.out, shown, _library(options)
        )


def _of_csv(options: argparse.Namespace, given: dict[str, Any], proxies: list[str]) -> str:
    from nni_blockswap.cli.search import SearchLine
    from nni_blockswap.scoring.settings import ScoreSettings
    from nni_blockswap.studies.rank_study import rank_study, read_trained, table

    missing = [f"--{name}" for name in ("space", "data") if given[name] is None]
    if missing:
        raise ConfigError(f"a file does not say what space and data its architectures are of; give {missing[0]}.")
    settings = ScoreSettings(**of_library(given, options.library))
    trained = read_trained(options.trained, settings.space, settings.space_args)
    with SearchLine() as shown:
        found = rank_study(trained, settings, proxies, options.train_minibatches, options.out, shown, _library(options))
    return f"{table(found)}\n\nrank correlation with the error of {len(trained)} architectures"


def _library(options: argparse.Namespace) -> "Library | None":
    from nni_blockswap.library.library import Library

    return Library.load(options.library) if options.library else None
