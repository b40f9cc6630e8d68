"""Exactly uniform samples of the architectures that meet a budget.

**One resource.** Let n_b(s) be the number of ways to complete b blocks whose costs sum to s within the budget
(``counting.py``). Candidate k of the next block is drawn with probability n_{b+1}(s + cost[k]) / n_b(s). The product
over the blocks is 1 / n_0(0) for every architecture in the budget, however rare they are among all.

**Several resources.** One of them, parameters if they are limited, as above; the others by rejection, which keeps
samples uniform. Where the cost m of another that is asked for is rare at that size, the proposals are tilted towards
it: drawn with probability proportional to exp(-rate * m) and accepted with probability exp(rate * (m - edge)), ``edge``
being the end of m's window nearest to the typical m. The product is constant over the window. The range of m that each
prefix can still end in is exact: it proves budgets out of reach, and leads straight to the architectures, which are
listed, where few meet all limits.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Column, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods.counting import Floats, Grid, Ints, Walk

_MOST_SUMS = 2**21  # a grid with tables of fair size; image sizes without a common divisor can need more for MACs
_LISTED = 2**14  # where so many architectures or fewer meet both limits, they are listed
_BATCH = 2**12
_MOST_DRAWS = 2**20
_NEWTON_STEPS = 20
_COUNT_ERROR = 0.01
_ALL_SEEN = 50  # an architecture not yet seen stays so through 50 * (seen + 1) draws with probability exp(-50)


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
        >>> params = Column("parameters", 10, (np.array([9, 1]), np.array([9, 1])))
        >>> table = Table(("a", "b"), (("S", "T"), ("S", "T")), {"params": params})
        >>> sampler = Sampler(table, Budget(params=20))
        >>> sampler.count, sampler.sample(9, np.random.default_rng(1))
        (3.0, [(1, 1), (0, 1), (1, 0)])
    """

    def __init__(self, table: Table, budget: Budget) -> None:
        bounds = budget.bounds(table)
        grids = {resource: _grid(table, resource, window) for resource, window in bounds.items()}
        main = next((name for name in grids if name == "params" or _fair(grids[name])), "params")
        grid = grids[main] if main in grids else Grid(table.column(main))
        others = {resource: window for resource, window in bounds.items() if resource != main}
        self._rejection = _Rejection(grid, table, main, bounds) if others else None
        self._walk = self._rejection.walk if self._rejection else Walk(grid)

    @property
    def count(self) -> float:
        return self._rejection.count_and_error[0] if self._rejection else self._walk.mass

    @property
    def count_error(self) -> float:
        return self._rejection.count_and_error[1] if self._rejection else 0.0

    def sample(self, n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """``n`` distinct architectures, each a candidate index for every block; every set of n is equally likely.

        Where fewer than n meet the budget, all of them are returned, in random order.
        """
        if self._rejection is None:
            return self._distinct(min(n, int(self.count)), rng)
        if self._rejection.listed is None:
            return self._distinct(n, rng)
        return list(map(tuple, rng.permutation(self._rejection.listed)[:n].tolist()))

    def _distinct(self, n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        acceptance = self._rejection.acceptance if self._rejection else 1.0
        found: dict[tuple[int, ...], None] = {}
        since_new = 0
        while len(found) < n and since_new < _ALL_SEEN * (len(found) + 1):
            seen = len(found)
            rows = self._walk.draw(min(int(1.1 * (n - seen) / acceptance) + 64, 8 * _BATCH), rng)
            if self._rejection:
                rows = rows[rng.random(len(rows)) < self._rejection.acceptances(rows)]
            found.update(dict.fromkeys(map(tuple, rows.tolist())))
            since_new = since_new + len(rows) if len(found) == seen else 0
        return list(found)[:n]


class _Rejection:
    """Which of the grid's architectures meet the limits on other resources: a list where few do, else proposals.

    Their costs are counted above the cheapest candidate of each block.
    """

    def __init__(self, grid: Grid, table: Table, main: str, bounds: dict[str, tuple[int, int]]) -> None:
        self._grid = grid
        self._others = [_Other(grid, table.column(name), window) for name, window in bounds.items() if name != main]
        order = [*(name for name in bounds if name != main), *(name for name in bounds if name == main)]
        asked = " with ".join(_asked(table.column(name).unit, bounds[name]) for name in order)
        reach = " and ".join(other.reach for other in self._others) + " there"
        if any(other.is_out_of_reach for other in self._others):
            raise BudgetError(f"No architecture has {asked}: {reach}; choose within that range.")
        self.listed = self._list()
        if self.listed is not None and not len(self.listed):
            raise BudgetError(f"No architecture has {asked}: {reach}, but not in the band; widen the tolerance.")
        self.walk = Walk(grid)
        if self.listed is None:
            self._tilt()
            self.acceptance = self._measure_acceptance()
            if not self.acceptance:
                raise BudgetError(
                    f"Undecided whether any architecture has {asked}: {reach}, but of {_MOST_DRAWS:,} random ones none "
                    "falls into the band; widen the tolerance."
                )

    def _list(self) -> Ints | None:
        """All architectures that meet all limits, or None where they, or prefixes that may lead to them, are many."""
        rows, sums = np.empty((1, 0), np.int64), np.zeros(1, np.int64)
        spent = [np.zeros(1, np.int64) for _ in self._others]
        for number, (block, steps) in enumerate(zip(self._grid.order, self._grid.steps, strict=True), start=1):
            ahead = sums[:, None] + steps
            costs = [before[:, None] + other.costs[block] for before, other in zip(spent, self._others, strict=True)]
            reached = [other.may_end(number, ahead, one) for one, other in zip(costs, self._others, strict=True)]
            alive = np.logical_and.reduce(reached)
            if np.count_nonzero(alive) > _LISTED:
                return None
            parents, picks = np.nonzero(alive)
            rows, sums, spent = np.column_stack([rows[parents], picks]), ahead[alive], [one[alive] for one in costs]
        return rows[:, np.argsort(self._grid.order)]

    def _tilt(self) -> None:
        """Newton's method for the rates at which the mean of each m lies on the end of its window next to its mean now.

        d log(mass) / d rate = -mean(m) and d^2 log(mass) / d rate^2 = var(m), both from draws. Samples are uniform at
        any rates of the right signs; at these many proposals are accepted.
        """
        rng = np.random.default_rng(0)
        rows = self.walk.draw(_BATCH, rng)
        tilted = [other for other in self._others if other.choose_edge(rows)]
        for _ in range(_NEWTON_STEPS):
            if not sum([other.improve_rate(rows) for other in tilted]):
                return
            weights = [sum(-other.rate * other.costs[b] for other in tilted) for b in range(len(self._grid.order))]
            self.walk = Walk(self._grid, tuple(weights))
            rows = self.walk.draw(_BATCH, rng)

    def acceptances(self, rows: Ints) -> Floats:
        """Probability of accepting each proposal."""
        logs = np.zeros(len(rows))
        for other in self._others:
            logs = logs + other.log_acceptance(rows)
        return np.exp(logs)

    def _measure_acceptance(self) -> float:
        """Share of proposals accepted, 0 if none of very many is."""
        rng = np.random.default_rng(0)
        for batches in range(1, _MOST_DRAWS // _BATCH + 1):
            accepted = float(self.acceptances(self.walk.draw(_BATCH, rng)).sum())
            if accepted:
                return accepted / (batches * _BATCH)
        return 0.0

    @cached_property
    def count_and_error(self) -> tuple[float, float]:
        """Number of architectures, mass * E[acceptance] * exp(sum of rate * edge), and its relative standard error."""
        if self.listed is not None:
            return float(len(self.listed)), 0.0
        rng = np.random.default_rng(0)
        draws = total = squares = 0.0
        error = np.inf
        while error > _COUNT_ERROR and draws < _MOST_DRAWS:
            accepted = self.acceptances(self.walk.draw(_BATCH, rng))
            draws, total, squares = draws + _BATCH, total + accepted.sum(), squares + (accepted**2).sum()
            error = np.sqrt(max(squares / total**2 - 1 / draws, 0.0)) if total else np.inf
        tilt = sum(other.rate * other.edge for other in self._others)
        return float(np.exp(self.walk.log_mass + tilt) * total / draws), float(error)


class _Other:
    """The limit on a resource that is not the grid's: its window, what can be reached, and the tilt towards it."""

    def __init__(self, grid: Grid, column: Column, window: tuple[int, int]) -> None:
        base = column.reach[0]
        self.costs = tuple(block - block.min() for block in column.costs)
        self.low, self.high = (total - base for total in window)
        self.rate, self.edge = 0.0, 0
        self._least, self._most = grid.extremes(self.costs)
        least, most = self._least.root, self._most.root
        self.is_out_of_reach = bool(least > self.high or most < self.low)
        self.reach = f"{column.unit} reach from {base + int(least):,} to {base + int(most):,}"

    def may_end(self, number: int, sums: Ints, spent: Ints) -> NDArray[np.bool_]:
        """Whether prefixes of ``number`` blocks, with these sums in the grid, can still end within the window."""
        found: NDArray[np.bool_] = spent + self._least.at(number, sums) <= self.high
        return found & (spent + self._most.at(number, sums) >= self.low)

    def spent(self, rows: Ints) -> Ints:
        """Cost of each of ``rows``."""
        spent = np.zeros(len(rows), dtype=np.int64)
        for block, costs in enumerate(self.costs):
            spent += costs[rows[:, block]]
        return spent

    def choose_edge(self, rows: Ints) -> bool:
        """Whether proposals have to be tilted: the end of the window that they are to be drawn to is ``edge``."""
        mean = self.spent(rows).mean()
        if self.low <= mean <= self.high:
            return False
        self._too_dear = bool(mean > self.high)
        self.edge = self.high if self._too_dear else self.low
        return True

    def improve_rate(self, rows: Ints) -> bool:
        """One of Newton's steps; whether it was needed."""
        spent = self.spent(rows)
        excess = spent.mean() - self.edge
        if abs(excess) <= spent.std() / 2:
            return False
        rate = self.rate + float(excess / max(spent.var(), 1.0))
        self.rate = max(rate, 0.0) if self._too_dear else min(rate, 0.0)
        return True

    def log_acceptance(self, rows: Ints) -> Floats:
        """Logarithm of the probability of accepting each proposal, as far as this limit is concerned."""
        spent = self.spent(rows)
        meets = (self.low <= spent) & (spent <= self.high)
        return np.where(meets, self.rate * (spent - self.edge), -np.inf)


def _fair(grid: Grid) -> bool:
    return grid.high < _MOST_SUMS


def _grid(table: Table, resource: str, window: tuple[int, int]) -> Grid:
    """The grid of one limited resource, once it is sure that some architecture meets the limit."""
    column = table.column(resource)
    grid = Grid(column, window)
    least, most = grid.base, grid.total(grid.top)
    reach = f"{column.unit} reach from {least:,} to {most:,} in this space"
    if window[1] < least or window[0] > most:
        raise BudgetError(f"No architecture has {_asked(column.unit, window)}: {reach}; choose within that range.")
    if _fair(grid) and (gap := grid.gap()):
        raise BudgetError(
            f"No architecture has {_asked(column.unit, window)}: {reach}, but none between {gap[0]:,} and {gap[1]:,}; "
            "choose one of these or widen the tolerance."
        )
    return grid


def _asked(unit: str, window: tuple[int, int]) -> str:
    """``at most 400,000 parameters``, ``390,000 to 410,000 parameters``."""
    low, high = window
    return f"{f'{low:,} to' if low else 'at most'} {high:,} {unit}"
