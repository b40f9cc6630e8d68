"""Successive halving over draws of the weights: all architectures under one draw, the better under more.

Scores under two draws of the weights agree less than those of two minibatches (rank correlations of 0.81 and 0.993 for
Fisher potential), so it is draws that are saved on what is no good.

Source: Jamieson & Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter Optimization*, AISTATS 2016.
"""

import math
from collections.abc import Mapping

from nni_blockswap.cost.table import Indices
from nni_blockswap.methods.base import Problem, Request
from nni_blockswap.methods.uniform import draw

SHARES = (1.0, 0.5, 0.1)
"""Of the samples, that are scored under one draw of the weights, under half of all, and under all of them."""


def rungs(samples: int, inits: int) -> list[tuple[int, int]]:
    """(architectures, draws of the weights) of each step.

    Example:
        >>> rungs(1000, 5), rungs(1000, 2), rungs(1000, 1)
        ([(1000, 1), (500, 3), (100, 5)], [(1000, 1), (100, 2)], [(1000, 1)])
    """
    by_inits: dict[int, int] = {}
    for share, draws in zip(SHARES, (1, (1 + inits) // 2, inits), strict=True):
        by_inits.setdefault(draws, math.ceil(share * samples))
    return [(count, draws) for draws, count in by_inits.items()]


class Halving:
    """Asks for ``samples`` uniform architectures under one draw, then for the better half, then for the best tenth.

    The last come into the ranking. With one draw of the weights in all it is the uniform method.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rows = draw(problem)
        self._rungs = rungs(len(self._rows), problem.inits)

    def ask(self) -> Request | None:
        if not self._rungs:
            return None
        count, inits = self._rungs.pop(0)
        return Request(self._rows[:count], inits)

    def tell(self, scores: Mapping[Indices, float]) -> None:
        self._rows = tuple(sorted(scores, key=lambda row: self._problem.merit(scores[row]), reverse=True))
