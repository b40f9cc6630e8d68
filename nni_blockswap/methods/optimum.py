"""The exact optimum of a sum over the blocks within a budget: a multiple-choice knapsack, as an integer program.

With a binary x_bk for candidate k of block b,

    minimise sum_bk value_bk x_bk     where  sum_k x_bk = 1 for each b,     low <= fixed + sum_bk cost_bk x_bk <= high

for each limited resource, in each box of the budget. Found by branch and bound (HiGHS, by way of
``scipy.optimize.milp``), one architecture after the other; sum_b x_b,k(b) <= blocks - 1 cuts off one that was found.
"""

from collections.abc import Container, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods.counting import Floats
from nni_blockswap.methods.sampler import Sampler

_SPREAD = 1e4  # of all values together, once scaled: HiGHS takes 1e-6 for nothing
_INFEASIBLE = 2


def optima(
    values: Sequence[Floats], table: Table, budget: Budget, k: int = 1, without: Container[Indices] = ()
) -> list[Indices]:
    """The ``k`` architectures with the least sums of ``values`` that meet all limits, least first.

    Exact, but for sums that differ by less than 1e-10 of the range of all sums, whose order is arbitrary.

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
    programs = [_Program(values, table, box) for box in budget.boxes(table)]
    found: list[Indices] = []
    for program in programs:
        of_box: list[Indices] = []
        while len(of_box) < k and (one := program.next()) is not None:
            of_box += [] if one in without else [one]
        found += of_box
    if not any(program.is_feasible for program in programs):
        Sampler(table, budget)  # raises, and says why
        raise BudgetError(f"no architecture was found at {budget}; widen the tolerance.")
    return sorted(found, key=lambda row: sum(float(block[i]) for block, i in zip(values, row, strict=True)))[:k]


class _Program:
    """The integer program, and what was cut off.

    HiGHS computes in floating point, within tolerances. So that no limit is lost in them, costs are divided by the
    greatest that matters, a limit is loosened by more than the rounding, and what it finds is added up in integers: one
    out of the budget is cut off like one that was found.
    """

    def __init__(self, values: Sequence[Floats], table: Table, bounds: Mapping[str, tuple[int, int]]) -> None:
        self._table, self._bounds = table, bounds
        self.is_feasible = False
        least = [float(block.min()) for block in values]
        range_ = sum(float(np.ptp(block)) for block in values)
        self._objective = np.concatenate([block - low for block, low in zip(values, least, strict=True)])
        self._objective *= _SPREAD / range_ if range_ else 1.0
        sizes = [len(block) for block in values]
        self._starts = np.cumsum([0, *sizes[:-1]])
        one_each = np.repeat(np.eye(len(sizes)), sizes, axis=1)
        self._constraints = [LinearConstraint(one_each, 1, 1), *map(self._limit, self._bounds)]

    def next(self) -> Indices | None:
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
