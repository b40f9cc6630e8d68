"""Show a search space: candidates and costs of each block, how many architectures there are and fit a budget."""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from nni_blockswap.cli.options import add_search_space_file, add_space_options
from nni_blockswap.key_values import key_values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_space_options(parser, positional=True)
    add_search_space_file(parser)
    parser.add_argument(
        "--budget", nargs="+", default=[], metavar="N", help="400000, 400K, 36%%, macs=90M, params=400K,macs=90M"
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="T", help="make budgets bands: 0.025 is within 2.5 %% on both sides"
    )
    parser.add_argument("--json", action="store_true", help="write the candidates in NNI's search space format instead")


def run(options: argparse.Namespace) -> int:
    """Print the space."""
    from nni_blockswap.architecture import cost_table
    from nni_blockswap.blocks.nni_format import read_candidates, to_nni
    from nni_blockswap.cost.budget import Budget
    from nni_blockswap.cost.table import RESOURCES, CostTable
    from nni_blockswap.methods.sampler import Sampler

    table: CostTable = cost_table(options.space, key_values(options.space_arg, "--space-arg"))
    if options.search_space_file:
        table = table.narrowed(read_candidates(options.search_space_file))
    if options.json:
        print(json.dumps(to_nni(table), indent=2))
        return 0
    for label, names, params, macs in zip(table.labels, table.candidates, table.params, table.macs, strict=True):
        print(f"{label}  {len(names):2d} candidates, {params.min():>9,} to {params.max():>9,} parameters, "
              f"{macs.min():>11,} to {macs.max():>11,} MACs:  {' '.join(names)}")  # fmt: skip
    print(f"{'fixed':8s}  {table.fixed_params:,} parameters, {table.fixed_macs:,} MACs")
    for what, pick in (("cheapest", min), ("dearest", max)):
        totals = {name: _extreme(*table.columns(name), pick) for name in RESOURCES}
        print(f"{what:8s}  {totals['params']:,} parameters; {totals['macs']:,} MACs")
    print(f"original  {table.original('params'):,} parameters, {table.original('macs'):,} MACs")
    everything = math.prod(len(names) for names in table.candidates)
    print(f"{everything:.4g} architectures")
    for text in options.budget:
        budget = Budget.parse(text, options.tolerance)
        count = Sampler(table, budget).count
        print(f"{count:.4g} of them in {budget} ({count / everything:.3g} of all)")
    return 0


def _extreme(fixed: int, columns: Sequence[NDArray[np.int64]], pick: Callable[[Iterable[int]], int]) -> int:
    return fixed + sum(pick(column.tolist()) for column in columns)
