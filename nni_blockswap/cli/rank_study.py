"""Correlate every proxy with the final error of architectures that were trained (the paper's Table 1).

The CSV file has a column error, and either one column a block (block_00, block_01, ...) or a column choices with the
substitutes in block order, separated by spaces. Writes OUT/correlations.md and .csv, OUT/scores.csv, OUT/scatter.png.
Scores are on disk as they come: the same command goes on where it was stopped.
"""

import argparse

from nni_blockswap.cli.options import add_score_options, add_space_options, score_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("csv", metavar="CSV", help="architectures with their errors")
    add_space_options(parser)
    add_score_options(parser)
    parser.add_argument("--proxies", nargs="+", metavar="NAME", help="default: all there are")
    parser.add_argument(
        "--train-minibatches",
        nargs="+",
        type=int,
        default=(1, 10, 100),
        metavar="T",
        help="score on the T-th minibatch of training (default: 1 10 100; 1 is untrained)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for scores, tables and scatter plot")


def run(options: argparse.Namespace) -> int:
    """Study and print the table."""
    from nni_blockswap.cli.search import ProgressLine
    from nni_blockswap.scoring.proxies import PROXIES
    from nni_blockswap.searching import ScoreSettings
    from nni_blockswap.studies.rank_study import rank_study, read_trained, table

    settings = ScoreSettings(**score_settings(options))
    trained = read_trained(options.csv, settings.space, settings.space_args)
    proxies = options.proxies or list(PROXIES)
    found = rank_study(trained, settings, proxies, options.train_minibatches, options.out, ProgressLine())
    print(f"{table(found)}\n\nrank correlation with the error of {len(trained)} architectures; in '{options.out}'")
    return 0
