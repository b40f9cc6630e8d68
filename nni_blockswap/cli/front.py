"""Search many budgets in one run, and draw what is reached at each.

Writes OUT/front.csv and front.png: the architectures that no other beats in score and costs, the best of each budget,
the teacher, and the networks with one substitute throughout; and a ranking of each budget, in a folder each.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nni_blockswap.cli.search import SearchLine, add_search_options, settings_of

if TYPE_CHECKING:
    from nni_blockswap.architecture import Architecture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_search_options(parser)
    parser.add_argument(
        "--budgets", required=True, metavar="FROM..TO", help="10%%..60%%, 200K..800K, macs=50M..90M, latency=2ms..9ms"
    )
    parser.add_argument("--points", type=int, default=12, metavar="N", help="budgets between them (default 12)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for scores, rankings, front.csv, front.png")


def run(options: argparse.Namespace) -> int:
    """Print the best of each budget."""
    from nni_blockswap.results.tables import markdown
    from nni_blockswap.searching import table_of
    from nni_blockswap.studies.front import front, spaced

    options.budget = spaced(options.budgets, options.points)
    settings = settings_of(options)
    with SearchLine() as shown:
        found = front(settings, options.out, shown)
    table = table_of(settings)
    rows: list[tuple[str, ...]] = [("budget", "score", *found.teacher.costs, "of the budget")]
    for budget, (name, one) in zip(settings.parsed(), found.chosen.items(), strict=True):
        rows.append((name, *_told(one), budget.spelled_unused(table, one.costs)))
    rows.append(("teacher", *_told(found.teacher), ""))
    print(markdown(rows))
    print(f"{len(found.architectures)} of {len(found.everything)} on the front; {options.out}/front.csv and front.png")
    return 0


def _told(one: Architecture) -> tuple[str, ...]:
    """Score and costs."""
    return (f"{one.score:.6g}", *(f"{cost:,}" for cost in one.costs.values()))
