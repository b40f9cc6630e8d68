"""Exactly uniform samples of the architectures that meet a budget.

A budget is one box of windows (``box.py``), or the union of several that have nothing in common. From a union a
proposal is of box i with probability proportional to the proposals that box i needs for one draw of each of its
architectures; so every architecture of the union is equally likely to be drawn.
"""

import math
from collections.abc import Iterator

import numpy as np

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods.box import BATCH, Box
from nni_blockswap.methods.counting import Ints

_ALL_SEEN = 50  # an architecture not yet seen stays so through 50 * (seen + 1) draws with probability exp(-50)
_BELOW = "take everything below with at_most (--at-most)"
_LOOKED_AT = 1000  # architectures within the caps, where none uses them up


class Sampler:
    """Uniform over the architectures of ``table`` that meet ``budget``.

    Attributes:
        count: how many there are. With one limited resource exact up to 2^53, and beyond to a relative 1e-13. With
            several exact where they could be listed (at most 16,384), else an unbiased estimate.
        count_error: relative standard error of ``count``, about 1 %, where it is an estimate; else 0.

    Raises:
        BudgetError: no architecture meets the budget; says what can be reached. For very narrow bands of several
            resources, each within reach, it may say instead that it is undecided whether one exists.

    Example:
        >>> from nni_blockswap.cost.table import Column
        >>> params = Column("parameters", 10, (np.array([9, 1]), np.array([9, 1])))
        >>> table = Table(("a", "b"), (("S", "T"), ("S", "T")), {"params": params})
        >>> sampler = Sampler(table, Budget(params=20, at_most=True))
        >>> sampler.count, sampler.sample(9, np.random.default_rng(1))
        (3.0, [(1, 1), (0, 1), (1, 0)])
    """

    def __init__(self, table: Table, budget: Budget) -> None:
        boxes = budget.boxes(table)
        wider = "widen the tolerance" if budget.tolerance is not None else _BELOW
        self._boxes = [Box(table, boxes[0], wider)] if len(boxes) == 1 else list(_filled(table, boxes))
        if not self._boxes:
            raise BudgetError(_out_of_reach(table, budget))

    @property
    def count(self) -> float:
        return sum(box.count for box in self._boxes)

    @property
    def count_error(self) -> float:
        return math.hypot(*(box.count * box.count_error for box in self._boxes)) / self.count

    def sample(self, n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """``n`` distinct architectures, each a candidate index for every block; every set of n is equally likely.

        Where fewer than n meet the budget, all of them are returned, in random order.
        """
        listed = [box.listed for box in self._boxes if box.listed is not None]
        if len(listed) == len(self._boxes):
            return list(map(tuple, rng.permutation(np.concatenate(listed))[:n].tolist()))
        if len(self._boxes) == 1 and self._boxes[0].is_counted and math.isfinite(self.count):
            n = min(n, int(self.count))
        return self._distinct(n, rng)

    def _distinct(self, n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        acceptance = min(box.acceptance for box in self._boxes)
        found: dict[tuple[int, ...], None] = {}
        since_new = 0
        while len(found) < n and since_new < _ALL_SEEN * (len(found) + 1):
            seen = len(found)
            rows = self._draw(min(int(1.1 * (n - seen) / acceptance) + 64, 8 * BATCH), rng)
            found.update(dict.fromkeys(map(tuple, rows.tolist())))
            since_new = since_new + len(rows) if len(found) == seen else 0
        return list(found)[:n]

    def _draw(self, proposals: int, rng: np.random.Generator) -> Ints:
        """What is kept of so many proposals, in random order."""
        if len(self._boxes) == 1:
            return self._boxes[0].draw(proposals, rng)
        logs = np.array([box.log_proposals for box in self._boxes])
        odds = np.exp(logs - logs.max())
        shares = rng.multinomial(proposals, odds / odds.sum())
        drawn = [box.draw(int(share), rng) for box, share in zip(self._boxes, shares, strict=True)]
        rows: Ints = rng.permutation(np.concatenate(drawn))
        return rows


def _filled(table: Table, boxes: list[dict[str, tuple[int, int]]]) -> Iterator[Box]:
    """Those with architectures; one whose architectures, if any, are rarer than one in a million proposals has none."""
    for windows in boxes:
        try:
            yield Box(table, windows)
        except BudgetError:
            continue


def _out_of_reach(table: Table, budget: Budget) -> str:
    """What is said where no architecture uses up one of several caps. Raises BudgetError where none meets the caps."""
    caps = Sampler(table, budget.capped())
    rows = caps.sample(_LOOKED_AT, np.random.default_rng(0))
    bounds = budget.bounds(table)
    totals = [(name, table.total(name, row)) for row in rows for name in bounds]
    name, most = max(totals, key=lambda one: one[1] / bounds[one[0]][1])
    return (
        f"No architecture has {budget.describe(table)}: the nearest that was found has {most:,} "
        f"{table.column(name).unit}; lower that figure to it or {_BELOW}."
    )
