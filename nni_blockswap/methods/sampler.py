"""Exactly uniform samples of the architectures that meet a budget.

**One resource.** Let n_b(s) be the number of ways to complete b blocks whose costs sum to s within the budget
(``counting.py``). Candidate k of the next block is drawn with probability n_{b+1}(s + cost[k]) / n_b(s). The product
over the blocks is 1 / n_0(0) for every architecture in the budget, however rare they are among all.

**Both resources.** Parameters as above, MACs by rejection, which keeps samples uniform. Where the MACs m that are asked
for are rare at that size, the proposals are tilted towards them: drawn with probability proportional to exp(-rate * m)
and accepted with probability exp(rate * (m - edge)), ``edge`` being the end of the MACs' window nearest to the typical
m. The product is constant over the window. The range of MACs that each prefix can still end in is exact: it proves
budgets out of reach, and leads straight to the architectures, which are listed, where few meet both limits.
"""

from functools import cached_property

import numpy as np

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import CostTable
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods.counting import Floats, Grid, Ints, Tables, Walk

_UNITS = {"params": "parameters", "macs": "MACs"}
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
        count: how many there are. With one limited resource exact up to 2^53, and beyond to a relative 1e-13. With both
            exact where they could be listed (at most 16,384), else an unbiased estimate.
        count_error: relative standard error of ``count``, about 1 %, where it is an estimate; else 0.

    Raises:
        BudgetError: no architecture meets the budget; says what can be reached. For very narrow bands of both
            resources, each within reach, it may say instead that it is undecided whether one exists.

    Example:
        >>> table = CostTable(("a", "b"), (("S", "T"),) * 2, (np.array([9, 1]),) * 2, (np.array([7, 5]),) * 2, 10, 0)
        >>> sampler = Sampler(table, Budget(params=20))
        >>> sampler.count, sampler.sample(9, np.random.default_rng(1))
        (3.0, [(1, 1), (0, 1), (1, 0)])
    """

    def __init__(self, table: CostTable, budget: Budget) -> None:
        bounds = budget.bounds(table)
        grids = {resource: _grid(table, resource, window) for resource, window in bounds.items()}
        main = "params" if "params" in grids or not _fair(grids["macs"]) else "macs"
        grid = grids.get(main) or Grid(*table.columns(main))
        self._rejection = _Rejection(grid, table, bounds) if bounds.keys() != {main} else None
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
    """Which of the grid's architectures meet the limit on MACs too: a list where few do, else proposals to reject from.

    MACs are counted above the cheapest candidate of each block.
    """

    def __init__(self, grid: Grid, table: CostTable, bounds: dict[str, tuple[int, int]]) -> None:
        fixed, costs = table.columns("macs")
        base = fixed + sum(int(block.min()) for block in costs)
        self._grid = grid
        self._costs = tuple(block - block.min() for block in costs)
        self._low, self._high = (total - base for total in bounds["macs"])
        least, most = grid.extremes(self._costs)
        asked = " with ".join(_asked(name, bounds[name]) for name in ("macs", "params") if name in bounds)
        reach = f"MACs reach from {base + int(least.root):,} to {base + int(most.root):,} there"
        if least.root > self._high or most.root < self._low:
            raise BudgetError(f"No architecture has {asked}: {reach}; choose within that range.")
        self.listed = self._list(least, most)
        if self.listed is not None and not len(self.listed):
            raise BudgetError(f"No architecture has {asked}: {reach}, but not in the band; widen the tolerance.")
        self.walk, self._rate, self._edge = Walk(grid), 0.0, 0
        if self.listed is None:
            self._tilt()
            self.acceptance = self._measure_acceptance()
            if not self.acceptance:
                raise BudgetError(
                    f"Undecided whether any architecture has {asked}: {reach}, but of {_MOST_DRAWS:,} random ones none "
                    "falls into the band; widen the tolerance."
                )

    def _list(self, least: Tables, most: Tables) -> Ints | None:
        """All architectures that meet both limits, or None where they, or prefixes that may lead to them, are many."""
        rows, sums, spent = np.empty((1, 0), np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
        for number, (block, steps) in enumerate(zip(self._grid.order, self._grid.steps, strict=True), start=1):
            ahead, costs = sums[:, None] + steps, spent[:, None] + self._costs[block]
            alive = (costs + least.at(number, ahead) <= self._high) & (costs + most.at(number, ahead) >= self._low)
            if np.count_nonzero(alive) > _LISTED:
                return None
            parents, picks = np.nonzero(alive)
            rows, sums, spent = np.column_stack([rows[parents], picks]), ahead[alive], costs[alive]
        return rows[:, np.argsort(self._grid.order)]

    def _tilt(self) -> None:
        """Newton's method for the rate at which the mean of m lies on the end of the window next to its untilted mean.

        d log(mass) / d rate = -mean(m) and d^2 log(mass) / d rate^2 = var(m), both from draws. Samples are uniform at
        any rate of the right sign; at this one many proposals are accepted.
        """
        rng = np.random.default_rng(0)
        spent = self._spent(self.walk.draw(_BATCH, rng))
        if self._low <= spent.mean() <= self._high:
            return
        too_dear = spent.mean() > self._high
        self._edge = self._high if too_dear else self._low
        for _ in range(_NEWTON_STEPS):
            excess = spent.mean() - self._edge
            if abs(excess) <= spent.std() / 2:
                return
            rate = self._rate + float(excess / max(spent.var(), 1.0))
            self._rate = max(rate, 0.0) if too_dear else min(rate, 0.0)
            self.walk = Walk(self._grid, tuple(-self._rate * block for block in self._costs))
            spent = self._spent(self.walk.draw(_BATCH, rng))

    def _spent(self, rows: Ints) -> Ints:
        spent = np.zeros(len(rows), dtype=np.int64)
        for block, costs in enumerate(self._costs):
            spent += costs[rows[:, block]]
        return spent

    def acceptances(self, rows: Ints) -> Floats:
        """Probability of accepting each proposal."""
        spent = self._spent(rows)
        meets = (self._low <= spent) & (spent <= self._high)
        return np.exp(np.where(meets, self._rate * (spent - self._edge), -np.inf))

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
        """Number of architectures, mass * E[acceptance] * exp(rate * edge), and its relative standard error."""
        if self.listed is not None:
            return float(len(self.listed)), 0.0
        rng = np.random.default_rng(0)
        draws = total = squares = 0.0
        error = np.inf
        while error > _COUNT_ERROR and draws < _MOST_DRAWS:
            accepted = self.acceptances(self.walk.draw(_BATCH, rng))
            draws, total, squares = draws + _BATCH, total + accepted.sum(), squares + (accepted**2).sum()
            error = np.sqrt(max(squares / total**2 - 1 / draws, 0.0)) if total else np.inf
        return float(np.exp(self.walk.log_mass + self._rate * self._edge) * total / draws), float(error)


def _fair(grid: Grid) -> bool:
    return grid.high < _MOST_SUMS


def _grid(table: CostTable, resource: str, window: tuple[int, int]) -> Grid:
    """The grid of one limited resource, once it is sure that some architecture meets the limit."""
    grid = Grid(*table.columns(resource), window)
    least, most = grid.base, grid.total(grid.top)
    reach = f"{_UNITS[resource]} reach from {least:,} to {most:,} in this space"
    if window[1] < least or window[0] > most:
        raise BudgetError(f"No architecture has {_asked(resource, window)}: {reach}; choose within that range.")
    if _fair(grid) and (gap := grid.gap()):
        raise BudgetError(
            f"No architecture has {_asked(resource, window)}: {reach}, but none between {gap[0]:,} and {gap[1]:,}; "
            "choose one of these or widen the tolerance."
        )
    return grid


def _asked(resource: str, window: tuple[int, int]) -> str:
    """``at most 400,000 parameters``, ``390,000 to 410,000 parameters``."""
    low, high = window
    return f"{f'{low:,} to' if low else 'at most'} {high:,} {_UNITS[resource]}"
