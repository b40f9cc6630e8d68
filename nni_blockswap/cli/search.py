"""Sample architectures within a budget, score them on one minibatch, rank them.

Writes OUT/ranking.csv (one row a candidate, best first) and OUT/best.json; with several budgets, in a folder each.
Scores are on disk as they come: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_blockswap.cli.options import (
    add_band_options,
    add_score_options,
    add_search_space_file,
    add_space_options,
    of_library,
    score_settings,
)
from nni_blockswap.cli.terminal import ProgressLine, spell_time
from nni_blockswap.errors import ConfigError
from nni_blockswap.trust import add_allow

if TYPE_CHECKING:  # torch is imported when a search starts, not for --help
    from nni_blockswap.conversation import Progress
    from nni_blockswap.searching import SearchSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_search_options(parser)
    parser.add_argument(
        "--budget",
        required=True,
        nargs="+",
        action="extend",
        metavar="N",
        help="400000, 400K, 36%%, macs=90M, params=400K,macs=90M; several give a ranking each",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for scores, ranking and TensorBoard curves; a ranking of another budget or number of samples "
        "there is never overwritten, its scores are used",
    )


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """All of a search but its budgets and where it writes."""
    add_space_options(parser)
    add_search_space_file(parser)
    add_score_options(parser, required=False)
    add_band_options(parser)
    parser.add_argument(
        "--resources",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="what else to tell of each architecture, beside parameters, MACs and what is limited: latency",
    )
    parser.add_argument(
        "--method",
        default="uniform",
        metavar="NAME",
        help="how architectures are chosen: uniform (default), additive, evolution, halving, or module:Class",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=1000,
        metavar="N",
        help="architectures a budget (default 1000; by a library at most 20 are listed)",
    )
    parser.add_argument(
        "--proxy",
        default="fisher",
        metavar="NAME",
        help="fisher (default), taylor, naswot, macs, ..., a module:Class; taylor+naswot is the sum of their ranks",
    )
    parser.add_argument(
        "--library", metavar="DIR", help="with --proxy library or library_log: the exact optimum by its errors, at once"
    )
    add_allow(parser)
    parser.add_argument(
        "--train-minibatches",
        type=int,
        default=1,
        metavar="T",
        help="score on the T-th minibatch of training (default 1: untrained)",
    )


def run(options: argparse.Namespace) -> int:
    """Search and print the winners."""
    from nni_blockswap.searching import search, table_of

    start, settings, line = time.monotonic(), settings_of(options), SearchLine()
    table, budgets = table_of(settings), settings.parsed()
    for budget in budgets:
        print(f"{budget}: {budget.describe(table)}")
    with line:
        rankings = search(settings, options.out, line)
    for ranking, budget in zip(rankings, budgets, strict=True):
        best = ranking.best
        folder = Path(options.out) / (budget.folder if len(rankings) > 1 else "")
        print(
            f"{ranking.budget}: best of {len(ranking.architectures)}: score {best.score:.6g}, "
            f"{best.spelled_costs} ({budget.spelled_unused(table, best.costs)})\n"
            f"  {' '.join(best.choices.values())}\n  in {folder / 'best.json'}"
        )
    for name, column in table.columns.items():
        if column.source:
            print(f"{name}: {describe_source(column.source)}")
    if line.last is not None and line.last.engine:
        print(line.last.spelled_engine)
    print(f"{time.monotonic() - start:.1f} s")
    return 0


def describe_source(source: Mapping[str, Any]) -> str:
    """Such as ``measured 2026-01-31 on X, 4 threads; on 30 networks 2.1 % off (median), rank correlation 0.99``."""
    where, held = source["where"], source["held_out"]
    return (
        f"measured {source['when'][:10]} on {where['chip']}, {where['threads']} threads, batches of "
        f"{where['batch_size']}; on {held['networks']} whole networks {held['median_error']:.1%} off (median), "
        f"rank correlation {held['rank_correlation']:.2f}"
    )


def settings_of(options: argparse.Namespace) -> SearchSettings:
    """Search settings from the command line."""
    from nni_blockswap.blocks.nni_format import read_candidates
    from nni_blockswap.searching import SearchSettings

    if options.data is None and options.library is None:
        raise ConfigError("--data NAME says what images to score on; only --proxy library needs none.")
    return SearchSettings(
        **of_library(score_settings(options), options.library),
        budgets=options.budget,
        tolerance=options.tolerance,
        at_most=options.at_most,
        resources=tuple(options.resources),
        method=options.method,
        samples=options.samples,
        proxy=options.proxy,
        train_minibatches=options.train_minibatches,
        library=options.library,
        candidates=read_candidates(options.search_space_file) if options.search_space_file else None,
    )


class SearchLine(ProgressLine):
    """How far a search is, and first what scores."""

    def __init__(self) -> None:
        super().__init__(candidates)
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Show it, unless one was shown just now."""
        if progress.engine and (self.last is None or self.last.engine != progress.engine):
            self.say(f"engine: {progress.engine}")
        self.last = progress
        super().__call__(progress)


def candidates(progress: Progress) -> str:
    """Such as ``120/300 candidates, 4.1/s, 0:44 left, best 0.00123``."""
    left = spell_time(progress.seconds_left)
    best = "none yet" if progress.best is None else f"{progress.best:.6g}"
    return f"{progress.done}/{progress.total} candidates, {progress.rate:.1f}/s, {left} left, best {best}"
