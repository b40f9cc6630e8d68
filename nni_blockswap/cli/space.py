"""Show a search space: candidates and costs of each block, how many architectures there are and fit a budget."""

import argparse
import json
import math
from decimal import Decimal

from nni_blockswap.cli.options import add_band_options, add_search_space_file, add_space_options, space_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_space_options(parser, positional=True)
    add_search_space_file(parser)
    parser.add_argument(
        "--budget",
        nargs="+",
        action="extend",
        default=[],
        metavar="N",
        help="400000, 400K, 36%%, macs=90M, params=400K,macs=90M",
    )
    add_band_options(parser)
    parser.add_argument("--json", action="store_true", help="write the candidates in NNI's search space format instead")


def run(options: argparse.Namespace) -> int:
    """Print the space."""
    from nni_blockswap.blocks.nni_format import read_candidates, to_nni
    from nni_blockswap.cost.budget import Budget
    from nni_blockswap.methods.sampler import Sampler
    from nni_blockswap.spaces import cost_table

    budgets = [Budget.parse(text, options.tolerance, options.at_most) for text in options.budget]
    resources = [name for budget in budgets for name in budget.resources]
    named = space_of(options)
    table = cost_table(named["space"], named["space_args"], resources)
    if options.search_space_file:
        table = table.narrowed(read_candidates(options.search_space_file))
    if options.json:
        print(json.dumps(to_nni(table), indent=2))
        return 0
    columns = table.columns.values()
    for block, (label, names) in enumerate(zip(table.labels, table.candidates, strict=True)):
        spans = (f"{one.costs[block].min():>11,} to {one.costs[block].max():>11,} {one.unit}" for one in columns)
        print(f"{label}  {len(names):2d} candidates, {', '.join(spans)}:  {' '.join(names)}")
    print(f"{'fixed':8s}  {', '.join(f'{one.fixed:,} {one.unit}' for one in columns)}")
    for place, what in enumerate(("cheapest", "dearest")):
        print(f"{what:8s}  {'; '.join(f'{one.reach[place]:,} {one.unit}' for one in columns)}")
    print(f"original  {', '.join(f'{table.original_cost(name):,} {one.unit}' for name, one in table.columns.items())}")
    everything = math.prod(len(names) for names in table.candidates)
    print(f"{_rounded(everything)} architectures")
    for budget in budgets:
        count = Sampler(table, budget).count
        share = math.exp(math.log(count) - math.log(everything))
        print(f"{count:.4g} of them in {budget} ({share:.3g} of all): {budget.describe(table)}")
    return 0


def _rounded(number: int) -> str:
    """Four digits of it, also where no float is as large."""
    try:
        return f"{number:.4g}"
    except OverflowError:
        return f"{Decimal(number):.4g}"
