"""Search many budgets in one run, and draw what is reached at each.

Writes OUT/front.csv and front.png: the architectures that no other beats in score and costs, the best of each budget,
the teacher, and the networks with one substitute throughout; and a ranking of each budget, in a folder each.
"""

import argparse

from nni_blockswap.cli.search import SearchLine, add_search_options, settings_of


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
    rows: list[tuple[str, ...]] = [("budget", "score", *found.teacher.costs, "of the budget")]
    spare = [budget.spelled_unused(table_of(settings), one.costs)
             for budget, one in zip(settings.parsed(), found.chosen.values(), strict=True)]  # fmt: skip
    best = (*found.chosen.items(), ("teacher", found.teacher))
    for (name, one), left in zip(best, [*spare, ""], strict=True):
        rows.append((name, f"{one.score:.6g}", *(f"{cost:,}" for cost in one.costs.values()), left))
    print(markdown(rows))
    print(f"{len(found.architectures)} of {len(found.everything)} on the front; {options.out}/front.csv and front.png")
    return 0
