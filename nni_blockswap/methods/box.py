"""The architectures whose cost of each limited resource lies in a window: how many there are, and draws of them.

**One resource.** Let n_b(s) be the number of ways to complete b blocks whose costs sum to s within the window
(``counting.py``). Candidate k of the next block is drawn with probability n_{b+1}(s + cost[k]) / n_b(s). The product
over the blocks is 1 / n_0(0) for every architecture in the window, however rare they are among all.

**Several resources.** One of them, parameters if they are limited, as above; the others by rejection, which keeps
samples uniform. Where the cost m of another that is asked for is rare at that size, the proposals are tilted towards
it: drawn with probability proportional to exp(-rate * m) and accepted with probability exp(rate * (m - edge)), ``edge``
being the end of m's window nearest to the typical m. The product is constant over the window. The range of m that each
prefix can still end in is exact: it proves windows out of reach, and leads straight to the architectures, which are
listed, where few lie in all windows.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nni_blockswap.cost.budget import spell_window
from nni_blockswap.cost.table import Column, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods.counting import Floats, Grid, Ints, Walk

_MOST_SUMS = 2**21  # a grid with tables of fair size; image sizes without a common divisor can need more for MACs
_LISTED = 2**14  # where so many architectures or fewer lie in all windows, they are listed
BATCH = 2**12
_MOST_DRAWS = 2**20
_NEWTON_STEPS = 20
_COUNT_ERROR = 0.01


class Box:
    """The architectures of ``table`` with a total in ``windows`` (least and most, inclusive) of each limited resource.

    Args:
        wider: what to do where windows are too narrow, for the error.

    Attributes:
        is_counted: whether the number is known without a draw, and every proposal kept.
        listed: all of them, (number, blocks) candidate indices, where few lie in windows of several resources; or None.
        acceptance: about the share of ``draw``'s proposals that is kept.

    Raises:
        BudgetError: there is none; says what can be reached. For very narrow windows of several resources, each within
            reach, it may say instead that it is undecided whether there is one.
    """

    def __init__(
        self, table: Table, windows: Mapping[str, tuple[int, int]], wider: str = "widen the tolerance"
    ) -> None:
        grids = {resource: _grid(table, resource, window, wider) for resource, window in windows.items()}
        main = next((name for name in grids if name == "params" or _fair(grids[name])), "params")
        grid = grids[main] if main in grids else Grid(table.column(main))
        several = any(name != main for name in windows)
        self._rejection = _Rejection(grid, table, main, windows, wider) if several else None
        self.is_counted = not several
        self._walk = self._rejection.walk if self._rejection else Walk(grid)
        self.listed = self._rejection.listed if self._rejection else None
        self.acceptance = self._rejection.acceptance if self._rejection else 1.0

    @property
    def count(self) -> float:
        return self._rejection.count_and_error[0] if self._rejection else self._walk.mass

    @property
    def count_error(self) -> float:
        """Relative standard error of ``count``; 0 where it is exact."""
        return self._rejection.count_and_error[1] if self._rejection else 0.0

    @property
    def log_proposals(self) -> float:
        """Logarithm of how many proposals come, on average, to one draw of each architecture."""
        if self.listed is not None:
            return float(np.log(len(self.listed)))
        return self._walk.log_mass + (self._rejection.tilt if self._rejection else 0.0)

    def draw(self, proposals: int, rng: np.random.Generator) -> Ints:
        """What is kept of so many proposals: every architecture is equally likely to be one of them."""
        if self.listed is not None:
            return self.listed[rng.integers(len(self.listed), size=proposals)]
        rows = self._walk.draw(proposals, rng)
        return rows[rng.random(len(rows)) < self._rejection.acceptances(rows)] if self._rejection else rows


class _Rejection:
    """Which of the grid's architectures meet the limits on other resources: a list where few do, else proposals.

    Their costs are counted above the cheapest candidate of each block.
    """

    def __init__(self, grid: Grid, table: Table, main: str, windows: Mapping[str, tuple[int, int]], wider: str) -> None:
        self._grid = grid
        self._others = [_Other(grid, table.column(name), window) for name, window in windows.items() if name != main]
        order = [*(name for name in windows if name != main), *(name for name in windows if name == main)]
        asked = " with ".join(spell_window(table.column(name).unit, windows[name]) for name in order)
        reach = " and ".join(other.reach for other in self._others) + " there"
        if any(other.is_out_of_reach for other in self._others):
            raise BudgetError(f"No architecture has {asked}: {reach}; choose within that range.")
        self.listed = self._list()
        if self.listed is not None and not len(self.listed):
            raise BudgetError(f"No architecture has {asked}: {reach}, but not in the band; {wider}.")
        self.walk, self.acceptance = Walk(grid), 1.0
        if self.listed is None:
            self._tilt()
            self.acceptance = self._measure_acceptance()
            if not self.acceptance:
                raise BudgetError(
                    f"Undecided whether any architecture has {asked}: {reach}, but of {_MOST_DRAWS:,} random ones none "
                    f"falls into the band; {wider}."
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
        rows = self.walk.draw(BATCH, rng)
        tilted = [other for other in self._others if other.choose_edge(rows)]
        for _ in range(_NEWTON_STEPS):
            if not sum([other.improve_rate(rows) for other in tilted]):
                return
            weights = [sum(-other.rate * other.costs[b] for other in tilted) for b in range(len(self._grid.order))]
            self.walk = Walk(self._grid, tuple(weights))
            rows = self.walk.draw(BATCH, rng)

    def acceptances(self, rows: Ints) -> Floats:
        """Probability of accepting each proposal."""
        logs = np.zeros(len(rows))
        for other in self._others:
            logs = logs + other.log_acceptance(rows)
        return np.exp(logs)

    def _measure_acceptance(self) -> float:
        """Share of proposals accepted, 0 if none of very many is."""
        rng = np.random.default_rng(0)
        for batches in range(1, _MOST_DRAWS // BATCH + 1):
            accepted = float(self.acceptances(self.walk.draw(BATCH, rng)).sum())
            if accepted:
                return accepted / (batches * BATCH)
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
            accepted = self.acceptances(self.walk.draw(BATCH, rng))
            draws, total, squares = draws + BATCH, total + accepted.sum(), squares + (accepted**2).sum()
            error = np.sqrt(max(squares / total**2 - 1 / draws, 0.0)) if total else np.inf
        return float(np.exp(self.walk.log_mass + self.tilt) * total / draws), float(error)

    @property
    def tilt(self) -> float:
        """What the logarithm of the walk's mass lacks to that of the proposals to one of each architecture."""
        return sum(other.rate * other.edge for other in self._others)


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


def _grid(table: Table, resource: str, window: tuple[int, int], wider: str) -> Grid:
    """The grid of one limited resource, once it is sure that some architecture meets the limit."""
    column = table.column(resource)
    grid = Grid(column, window)
    least, most = grid.base, grid.total(grid.top)
    asked = spell_window(column.unit, window)
    reach = f"{column.unit} reach from {least:,} to {most:,} in this space"
    if window[1] < least or window[0] > most:
        raise BudgetError(f"No architecture has {asked}: {reach}; choose within that range.")
    if _fair(grid) and (gap := grid.gap()):
        raise BudgetError(
            f"No architecture has {asked}: {reach}, but none between {gap[0]:,} and {gap[1]:,}; "
            f"choose one of these or {wider}."
        )
    return grid
