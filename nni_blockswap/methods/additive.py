"""Additive search: one number a candidate of each site explains most of a score, and its optimum is found exactly.

    score(architecture), or its logarithm  ~  constant + sum_b w_b[candidate of block b]

Uniform samples are scored, w is fitted to them by ridge regression, the architectures with the best sums under all
limits are found (``optimum.py``) and scored, w is fitted again to all scores, and so on, until nothing better comes.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import spearmanr

from nni_blockswap.cost.table import Indices
from nni_blockswap.methods.base import Problem, Request
from nni_blockswap.methods.counting import Floats
from nni_blockswap.methods.optimum import optima
from nni_blockswap.methods.uniform import draw

_log = logging.getLogger(__name__)

_FIRST = 0.5  # share of the samples that is uniform
_MOST_FIRST = 400
_ROUNDS = 10  # over which the other samples are spread
_LEAST = 8  # a round: work for all processes
_PATIENCE = 2  # rounds in which nothing better comes
_FOLDS = 5
_PENALTIES = 10.0 ** np.arange(-3, 4)


@dataclass(frozen=True)
class Fit:
    """An additive model of scores.

    Attributes:
        weights: of every candidate, an array a block; the greater the sum, the greater the score.
        correlation: Spearman's, of scores with predictions for architectures that were held out.
        logarithm: whether it is the logarithm of a score that they add up to.
        penalty: the ridge's.
    """

    weights: list[Floats]
    correlation: float
    logarithm: bool
    penalty: float


def fit(rows: Sequence[Indices], scores: Sequence[float], sizes: Sequence[int]) -> Fit:
    """The ridge regression of ``scores``, or of their logarithms, that ranks best what it did not see.

    Penalty, and whether logarithms are taken, are chosen by the rank correlation in cross-validation with 5 folds.

    Args:
        rows: architectures.
        scores: finite, one each.
        sizes: candidates of each block.

    Example:
        >>> rows = [(0, 0), (0, 1), (1, 0), (1, 1)] * 2
        >>> found = fit(rows, [2.0 * a + 3.0 * b for a, b in rows], (2, 2))
        >>> found.logarithm, [(w[1] - w[0]).round(1).item() for w in found.weights]
        (False, [2.0, 3.0])
    """
    starts = np.cumsum([0, *sizes[:-1]])
    chosen = np.zeros((len(rows), sum(sizes)))
    np.put_along_axis(chosen, np.array(rows) + starts, 1.0, axis=1)
    targets = {False: np.array(scores)}
    if min(scores) > 0:
        targets[True] = np.log(targets[False])
    tried = [
        (_held_out(chosen, y, targets[False], float(penalty)), logarithm, float(penalty))
        for logarithm, y in targets.items()
        for penalty in _PENALTIES
    ]
    best = max(tried, key=lambda one: one[0])
    weights, _ = _ridge(chosen, targets[best[1]], best[2])
    return Fit(np.split(weights, starts[1:]), *best)


def _held_out(chosen: Floats, y: Floats, scores: Floats, penalty: float) -> float:
    """Rank correlation of ``scores`` with what a fit to the other folds predicts; 0 where there is none."""
    fold = np.arange(len(y)) % _FOLDS
    predicted = np.empty_like(y)
    for held in range(min(_FOLDS, len(y))):
        weights, constant = _ridge(chosen[fold != held], y[fold != held], penalty)
        predicted[fold == held] = chosen[fold == held] @ weights + constant
    if np.ptp(predicted) == 0 or np.ptp(scores) == 0:
        return 0.0
    return round(float(spearmanr(predicted, scores).statistic), 6)  # coarser than rounding errors


def _ridge(chosen: Floats, y: Floats, penalty: float) -> tuple[Floats, float]:
    """The weights that minimise |y - constant - chosen @ weights|^2 + penalty |weights|^2, and the constant."""
    middle, mean = chosen.mean(axis=0), float(y.mean())
    centred = chosen - middle
    gram = centred @ centred.T + penalty * np.eye(len(y))
    weights: Floats = centred.T @ np.linalg.solve(gram, y - mean)
    return weights, mean - float(middle @ weights)


class Additive:
    """Half of the samples, at most 400, are uniform; the others are optima of the fits, in ten rounds or fewer.

    It ends after two rounds in which nothing better came, or when ``samples`` are scored.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        first = min(math.ceil(_FIRST * problem.samples), _MOST_FIRST)
        self._first = draw(replace(problem, samples=first))
        self._a_round = max((problem.samples - first) // _ROUNDS, _LEAST)
        self._told: dict[Indices, float] = {}
        self._best = -math.inf
        self._rounds_without = 0

    def ask(self) -> Request | None:
        if not self._told:
            return Request(self._first)
        usable = {row: score for row, score in self._told.items() if math.isfinite(score)}
        wanted = min(self._a_round, self._problem.samples - len(self._told))
        if wanted <= 0 or self._rounds_without >= _PATIENCE or len(usable) < _FOLDS:
            return None
        table = self._problem.table
        found = fit(list(usable), list(usable.values()), [len(names) for names in table.candidates])
        _log.info(
            "%s: additive model of %s%d scores, rank correlation %.3f held out, penalty %g",
            self._problem.budget, "the logarithms of " * found.logarithm, len(usable), found.correlation, found.penalty,
        )  # fmt: skip
        values = [-self._problem.sign * block for block in found.weights]  # optima are the least sums
        rows = optima(values, table, self._problem.budget, wanted, without=self._told)
        return Request(tuple(rows)) if rows else None

    def tell(self, scores: Mapping[Indices, float]) -> None:
        best = max(map(self._problem.merit, scores.values()), default=-math.inf)
        self._rounds_without = 0 if best > self._best else self._rounds_without + 1
        self._best = max(best, self._best)
        self._told |= scores
