"""Swap one block at a time for a substitute: Fisher potential, parameters and MACs by block (appendix B).

Writes OUT/sensitivity.csv, .md and .png. Scores are on disk as they come: the same command goes on where it was
stopped.
"""

import argparse

from nni_blockswap.cli.options import add_score_options, add_space_options, score_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_space_options(parser)
    add_score_options(parser)
    parser.add_argument("--substitute", required=True, metavar="NAME", help="such as G(4)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for scores, tables and bar plot")


def run(options: argparse.Namespace) -> int:
    """Score the swaps and print them."""
    from nni_blockswap.cli.search import SearchLine
    from nni_blockswap.scoring.settings import ScoreSettings
    from nni_blockswap.studies.sensitivity import rows, sensitivity, table

    settings = ScoreSettings(**score_settings(options))
    with SearchLine() as shown:
        original, by_block = sensitivity(settings, options.substitute, options.out, shown)
    print(table(rows(settings, original, by_block)))
    left_out = [label for label in original.choices if label not in by_block]
    if left_out:
        print(f"{options.substitute} is no candidate of {', '.join(left_out)}.")
    print(f"in '{options.out}'")
    return 0
