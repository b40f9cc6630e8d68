"""Proxies that say more together, "fisher+naswot": a sum of ranks, which needs no fitting.

Scores of two proxies have no common unit; their places among the candidates of one search do. A combination is thus
a property of a whole list of candidates: each proxy scores alone, and ``combined`` comes after the scoring.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies import make_proxy

SIGN = "+"


def parts(name: str) -> tuple[str, ...]:
    """The proxies that a name stands for: "fisher+naswot" is two, "fisher" itself alone.

    Raises:
        ConfigError: one of them is no proxy, or is there twice.

    Example:
        >>> parts("fisher+naswot")
        ('fisher', 'naswot')
    """
    found = tuple(part.strip() for part in name.split(SIGN))
    for part in found:
        make_proxy(part)
    if len(set(found)) < len(found):
        raise ConfigError(f"'{name}' names a proxy twice; a combination is of different ones, as in fisher+naswot.")
    return found


def is_high_good(name: str) -> bool:
    """Whether high is good for a proxy, as it always is for a combination."""
    found = parts(name)
    return len(found) > 1 or make_proxy(found[0]).higher_is_better


def scores_of(name: str, singles: Mapping[str, Sequence[float]]) -> list[float]:
    """What ``name``, a proxy or a combination, says of all candidates, given the scores of each proxy alone."""
    found = parts(name)
    if len(found) == 1:
        return list(singles[found[0]])
    return combined({one: singles[one] for one in found}, {one: is_high_good(one) for one in found})


def combined(scores: Mapping[str, Sequence[float]], higher_is_better: Mapping[str, bool]) -> list[float]:
    """One number for each candidate, high where the proxies agree that it is good.

        S_i = sum_p rank_p(i) / n    with rank 1 for the worst of the n candidates and n for the best by proxy p

    Equal scores share their mean rank. A candidate that any proxy gives no finite score has none here (NaN), and takes
    no part in the ranks of the others.

    Args:
        scores: for each proxy the scores of all candidates, in one order.
        higher_is_better: for each proxy.

    Raises:
        ValueError: the proxies scored different numbers of candidates.

    Example:
        >>> combined({"fisher": [2.0, 9.0, 4.0], "macs": [10, 10, 30]}, {"fisher": True, "macs": True})
        [0.8333333333333334, 1.5, 1.6666666666666667]
    """
    columns = np.array([[float(one) for one in column] for column in _equally_long(scores)])
    signs = np.array([1.0 if higher_is_better[name] else -1.0 for name in scores])
    finite = np.isfinite(columns).all(axis=0)
    total = np.full(columns.shape[1], math.nan)
    total[finite] = rankdata(signs[:, None] * columns[:, finite], axis=1).sum(axis=0) / max(1, finite.sum())
    return [float(one) for one in total]


def _equally_long(scores: Mapping[str, Sequence[float]]) -> list[Sequence[float]]:
    lengths = {name: len(column) for name, column in scores.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"all proxies must have scored the same candidates; the numbers of scores are {lengths}.")
    return list(scores.values())
