"""The exact optimum of a sum over the blocks within a budget: a multiple-choice knapsack, as an integer program.

With a binary x_bk for candidate k of block b,

    minimise sum_bk value_bk x_bk     where  sum_k x_bk = 1 for each b,     low <= fixed + sum_bk cost_bk x_bk <= high

for each limited resource, in each box of the budget. Found by branch and bound (HiGHS, by way of
``scipy.optimize.milp``), one architecture after the other; sum_b x_b,k(b) <= blocks - 1 cuts off one that was found.
"""

from collections.abc import Container, Mapping, Sequence
from functools import partial

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods.counting import Floats
from nni_blockswap.methods.sampler import Sampler

_SPREAD = 1e4  # of all values together, once scaled: HiGHS takes 1e-6 for nothing
_FAR = 10.0  # how many times the sum that is looked for a candidate's value may be
_INFEASIBLE = 2


def optima(
    values: Sequence[Floats], table: Table, budget: Budget, k: int = 1, without: Container[Indices] = ()
) -> list[Indices]:
    """The ``k`` architectures with the least sums of ``values`` that meet all limits, least first.

    Exact, but for sums that differ by less than a millionth of what they are above the least that there is without
    limits, whose order is arbitrary.

    Args:
        values: finite, one a candidate, an array a block.
        table: candidates and costs.
        budget: caps or bands on any number of resources.
        k: how many; where fewer meet the budget, all of them are found.
        without: architectures to leave out.

    Raises:
        BudgetError: no architecture meets the budget; says what can be reached.

    Example:
        >>> from nni_blockswap.cost.table import Column
        >>> params = Column("parameters", 10, (np.array([9, 1]), np.array([9, 1])))
        >>> table = Table(("a", "b"), (("S", "T"), ("S", "T")), {"params": params})
        >>> optima([np.array([0.0, 2.0]), np.array([0.0, 3.0])], table, Budget(params=20, at_most=True), k=2)
        [(1, 0), (0, 1)]
    """
    excess = [block - block.min() for block in values]
    of_boxes = [_least(excess, table, box, k, without) for box in budget.boxes(table)]
    if not any(is_feasible for _, is_feasible in of_boxes):
        Sampler(table, budget)  # raises, and says why
        raise BudgetError(f"no architecture was found at {budget}; widen the tolerance.")
    return sorted((row for found, _ in of_boxes for row in found), key=partial(_sum, values))[:k]


def _least(
    excess: Sequence[Floats],
    table: Table,
    box: Mapping[str, tuple[int, int]],
    k: int,
    without: Container[Indices],
) -> tuple[list[Indices], bool]:
    """The ``k`` best of a box, by what each candidate has above its block's least; and whether it has any.

    What the k-th best has above the least of all bounds what each of its candidates has. So one that has more by itself
    may as well have twice that, and a single huge value does not drown the differences of the others.
    """
    while True:
        program = _Program(excess, table, box)
        found = program.take(k, without)
        worst = max((_sum(excess, row) for row in found), default=0.0)
        if len(found) < k or worst == 0 or max(float(block.max()) for block in excess) <= _FAR * worst:
            return found, program.is_feasible
        excess = [np.minimum(block, 2 * worst) for block in excess]


def _sum(values: Sequence[Floats], row: Indices) -> float:
    return sum(float(block[i]) for block, i in zip(values, row, strict=True))


class _Program:
    """The integer program, of values whose least is 0 in each block, and what was cut off.

    HiGHS computes in floating point, within tolerances. So that no limit is lost in them, costs are divided by the
    greatest that matters, a limit is loosened by more than the rounding, and what it finds is added up in integers: one
    out of the budget is cut off like one that was found.
    """

    def __init__(self, values: Sequence[Floats], table: Table, bounds: Mapping[str, tuple[int, int]]) -> None:
        self._table, self._bounds = table, bounds
        self.is_feasible = False
        range_ = sum(float(block.max()) for block in values)
        self._objective = np.concatenate(values) * (_SPREAD / range_ if range_ else 1.0)
        sizes = [len(block) for block in values]
        self._starts = np.cumsum([0, *sizes[:-1]])
        one_each = np.repeat(np.eye(len(sizes)), sizes, axis=1)
        self._constraints = [LinearConstraint(one_each, 1, 1), *map(self._limit, self._bounds)]

    def take(self, k: int, without: Container[Indices]) -> list[Indices]:
        """The ``k`` best that are left but for those ``without``, or all where there are fewer."""
        found: list[Indices] = []
        while len(found) < k and (one := self._next()) is not None:
            found += [] if one in without else [one]
        return found

    def _next(self) -> Indices | None:
        """The best that is left; None when none is."""
        while True:
            solved = milp(
                self._objective,
                constraints=self._constraints,
                integrality=np.ones_like(self._objective),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 0},
            )
            if solved.status == _INFEASIBLE:
                return None
            if solved.x is None:
                raise BudgetError(f"the integer program of the budget could not be solved: {solved.message}")
            row = tuple(int(block.argmax()) for block in np.split(solved.x, self._starts[1:]))
            self._cut(row)
            if self._is_within(row):
                self.is_feasible = True
                return row

    def _limit(self, resource: str) -> LinearConstraint:
        column = self._table.column(resource)
        excess = [block - block.min() for block in column.costs]
        base = column.reach[0]
        widest = max(sum(int(block.max()) for block in excess), 1)
        low, high = ((total - base) / widest for total in self._bounds[resource])
        slack = 0.25 / widest + 1e-12  # less than one unit of the resource, more than the rounding of the sum
        return LinearConstraint(np.concatenate(excess) / widest, max(low - slack, -1.0), min(high + slack, 1.0 + slack))

    def _cut(self, row: Indices) -> None:
        chosen = np.zeros_like(self._objective)
        chosen[self._starts + row] = 1
        self._constraints.append(LinearConstraint(chosen, -np.inf, len(row) - 1))

    def _is_within(self, row: Indices) -> bool:
        return all(low <= self._table.total(name, row) <= high for name, (low, high) in self._bounds.items())
