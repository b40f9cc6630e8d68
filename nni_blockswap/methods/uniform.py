"""Random search, the paper's method (section 4): distinct architectures, uniform over those within the budget."""

import zlib
from collections.abc import Mapping

import numpy as np

from nni_blockswap.cost.table import Indices
from nni_blockswap.methods.base import Problem, Request
from nni_blockswap.methods.sampler import Sampler


def draw(problem: Problem) -> tuple[Indices, ...]:
    """Distinct architectures, every set of them equally likely; what one budget is given hangs on no other."""
    generator = np.random.default_rng([problem.seed, zlib.crc32(str(problem.budget).encode())])
    return tuple(Sampler(problem.table, problem.budget).sample(problem.samples, generator))


class Uniform:
    """Asks once for ``samples`` architectures; where fewer meet the budget, for all of them.

    Example:
        >>> from nni_blockswap.cost.budget import Budget
        >>> from nni_blockswap.cost.table import Column, Table
        >>> costs = Column("parameters", 0, (np.array([9, 1]), np.array([9, 1])))
        >>> table = Table(("a", "b"), (("S", "T"), ("S", "T")), {"params": costs})
        >>> Uniform(Problem(table, Budget(params=10, at_most=True), samples=2, seed=0)).ask().rows
        ((1, 1), (1, 0))
    """

    def __init__(self, problem: Problem) -> None:
        self._rows = draw(problem)

    def ask(self) -> Request | None:
        rows, self._rows = self._rows, ()
        return Request(rows) if rows else None

    def tell(self, scores: Mapping[Indices, float]) -> None:
        """They change nothing."""
