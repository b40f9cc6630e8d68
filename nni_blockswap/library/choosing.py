"""The best architectures by a library: errors add up, so the exact optimum within any budget is found without sampling.

score(k) = sum_b value(error_b[k_b])          value: as it is, or the logarithm
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nni_blockswap.architecture import Architecture
from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices, Table
from nni_blockswap.library.library import Library
from nni_blockswap.methods.optimum import optima
from nni_blockswap.results.ranking import Ranking, check_overwrites

PROXIES = {"library": "sum", "library_log": "log"}
"""Names that a search knows them by, and the form of the sum."""

LISTED = 20
"""Architectures a ranking has at most: each takes an integer program of its own."""


def choose(
    library: Library, proxy: str, table: Table, budgets: Sequence[Budget], count: int, homes: Sequence[Path] = ()
) -> list[Ranking]:
    """The ``count`` best architectures within each budget, exactly.

    Args:
        library: where the errors are from.
        proxy: one of ``PROXIES``.
        table: candidates and costs, of the library's space.
        budgets: a ranking each.
        count: how many, at most ``LISTED``.
        homes: a folder for each ranking, or none.

    Raises:
        BudgetError: no architecture meets a budget.
        StateError: a folder holds another ranking.
    """
    values = library.values(table, PROXIES[proxy])
    arrays = [np.array(block) for block in values]
    of_all = {"proxy": proxy, "method": "optimum", "samples": min(count, LISTED), "library_digest": library.digest,
              "candidates": table.digest}  # fmt: skip
    extents = [{**of_all, "budget": str(budget)} for budget in budgets]
    check_overwrites(homes, extents)
    rankings = []
    for budget, extent in zip(budgets, extents, strict=True):
        scored = []
        for row in optima(arrays, table, budget, min(count, LISTED)):
            terms = _terms(values, row)
            of_row: dict[str, Any] = {"library": str(library.folder), "seed": library.about["seed"],
                                      "block_scores": terms, **table.measured}  # fmt: skip
            architecture = Architecture.from_indices(library.about["space"], library.about["space_args"], table, row)
            scored.append(architecture.scored(sum(terms), {**extent, **of_row}))
        rankings.append(Ranking.of(str(budget), scored, higher_is_better=False))
    for home, ranking in zip(homes, rankings, strict=False):
        ranking.save(home)
    return rankings


def sums(library: Library, proxy: str, table: Table, architectures: Sequence[Mapping[str, str]]) -> list[float]:
    """The score of each of these architectures, given as canonical choices by label; low is good."""
    values = library.values(table, PROXIES[proxy])
    return [sum(_terms(values, table.index(choices))) for choices in architectures]


def _terms(values: Sequence[Sequence[float]], row: Indices) -> list[float]:
    """What each block adds to the score of an architecture."""
    return [float(block[index]) for block, index in zip(values, row, strict=True)]
