"""Counting and drawing architectures by the total of one resource: dynamic programming over the blocks.

Costs are integers, and after the cheapest candidate of each block is taken off, multiples of one unit u, their greatest
common divisor: total = base + u * (d_1 + ... + d_B) with small whole steps d_b. A prefix is a choice for blocks 1 to b;
what can follow it depends on the sum s of its steps alone. So one value for each block and sum,

    v_B(s) = end if low <= s <= high, else outside          v_{b-1}(s) = plus_k ( term_b[k] times v_b(s + d_b[k]) )

gathers all completions that end in the window: their number with (+, *), the least and the greatest of another cost
with (min, +) and (max, +).
"""

import numpy as np
from numpy.typing import NDArray

from nni_blockswap.cost.table import Column

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST = 700.0  # the logarithm of what float64 holds
_WIDEST = 300.0  # log weights of an architecture within this range leave exp(400) of float64 to the sums


class Grid:
    """One resource in whole steps: total = base + unit * (a step a block), and the sums ``low`` to ``high`` allowed.

    Blocks run from the narrowest range of costs to the widest (``order``), which keeps prefix sums few. Those before
    block b that can be reached and can still end in the window lie in ``first[b]`` to ``last[b]``.

    Args:
        column: the resource.
        window: least and greatest total allowed, inclusive; all by default.
    """

    def __init__(self, column: Column, window: tuple[int, int] | None = None) -> None:
        costs = column.costs
        self.order = sorted(range(len(costs)), key=lambda block: int(np.ptp(costs[block])))
        excess = [costs[block] - costs[block].min() for block in self.order]
        self.base = column.reach[0]
        self.unit = int(np.gcd.reduce(np.concatenate(excess))) or 1
        self.steps = [block // self.unit for block in excess]
        reach = np.cumsum([0, *(int(block.max()) for block in self.steps)])
        self.top = int(reach[-1])
        low, high = window or (self.base, self.total(self.top))
        self.low = max(-((self.base - low) // self.unit), 0)
        self.high = min((high - self.base) // self.unit, self.top)
        self.first = [int(s) for s in np.maximum(self.low - (self.top - reach), 0)]
        self.last = [int(s) for s in np.minimum(reach, self.high)]

    def total(self, steps: int) -> int:
        """Cost of an architecture whose steps sum to ``steps``."""
        return self.base + self.unit * steps

    def gap(self) -> tuple[int, int] | None:
        """The nearest totals below and above the window if no architecture lies in it.

        The window must overlap the range of all totals.
        """
        reached = 1  # bit s: some prefix has the sum s
        for block in self.steps:
            prefixes, reached = reached, 0
            for step in set(block.tolist()):
                reached |= prefixes << step
        below, above = reached & ((1 << self.low) - 1), reached >> (self.high + 1)
        if below.bit_count() + above.bit_count() < reached.bit_count():
            return None
        return self.total(below.bit_length() - 1), self.total(self.high + (above & -above).bit_length())

    def fold(self, plus: np.ufunc, times: np.ufunc, terms: list[Floats], end: float, outside: float) -> "Tables":
        """The recursion of the module's head; ``terms`` run in ``order``."""
        values = [_padded(self.high - self.low + 1, end, outside)]
        for block in reversed(range(len(self.steps))):
            first, last = self.first[block], self.last[block]
            next_first, next_last = self.first[block + 1], self.last[block + 1]
            here = _padded(last - first + 1, outside, outside)
            for step, term in zip(self.steps[block].tolist(), terms[block].tolist(), strict=True):
                start, stop = max(first, next_first - step), min(last, next_last - step) + 1
                if start < stop:
                    part = here[start - first + 1 : stop - first + 1]
                    onward = values[-1][start + step - next_first + 1 : stop + step - next_first + 1]
                    plus(part, times(onward, term), out=part)
            values.append(here)
        return Tables(self.first, values[::-1])

    def extremes(self, costs: tuple[Ints, ...]) -> tuple["Tables", "Tables"]:
        """Least and greatest sum of the other ``costs`` over the completions of each prefix."""
        terms = [costs[block].astype(np.float64) for block in self.order]
        return self.fold(np.minimum, np.add, terms, 0.0, np.inf), self.fold(np.maximum, np.add, terms, 0.0, -np.inf)


class Tables:
    """The values v_b(s), one array a block, that starts at sum ``starts[b]`` and has one `outside` at each end."""

    def __init__(self, starts: list[int], values: list[Floats]) -> None:
        self._starts, self._values = starts, values
        self.root = float(values[0][1])
        """v_0(0), over all architectures in the window."""

    def at(self, block: int, sums: Ints) -> Floats:
        """v_block of ``sums``, of any shape."""
        return self._values[block].take(sums - (self._starts[block] - 1), mode="clip")


class Walk:
    """Draws architectures in the grid's window with probability weight / mass, the weight a product over the blocks.

    Candidate k is drawn with probability weight_b[k] v_b(s + d_b[k]) / v_{b-1}(s); the product over the blocks
    telescopes. Weights that span more than float64 does are summed as logarithms, with (logaddexp, +).

    Args:
        log_weights: one array a block; all weights are 1 by default, and ``mass`` is the number of architectures.
    """

    def __init__(self, grid: Grid, log_weights: tuple[Floats, ...] | None = None) -> None:
        self._grid = grid
        terms = [log_weights[b] if log_weights else np.zeros(len(grid.steps[i])) for i, b in enumerate(grid.order)]
        range_, choices = sum(float(np.ptp(block)) for block in terms), sum(np.log(len(block)) for block in terms)
        self._logs = range_ > _WIDEST or range_ + choices > _LARGEST
        if self._logs:
            self._terms = terms
            self._tables = grid.fold(np.logaddexp, np.add, terms, 0.0, -np.inf)
        else:
            self._terms = [np.exp(block) for block in terms]
            self._tables = grid.fold(np.add, np.multiply, self._terms, 1.0, 0.0)

    @property
    def mass(self) -> float:
        """Sum of the weights; inf where float64 ends."""
        with np.errstate(over="ignore"):
            return float(np.exp(self._tables.root)) if self._logs else self._tables.root

    @property
    def log_mass(self) -> float:
        """Its logarithm, which any weights have."""
        return self._tables.root if self._logs else float(np.log(self._tables.root))

    def draw(self, n: int, rng: np.random.Generator) -> Ints:
        """(n, blocks) candidate indices, with replacement."""
        rows = np.empty((n, len(self._terms)), dtype=np.int64)
        sums = np.zeros(n, dtype=np.int64)
        blocks = zip(self._grid.order, self._grid.steps, self._terms, strict=True)
        for number, (block, steps, terms) in enumerate(blocks, start=1):
            odds = self._odds(self._tables.at(number, sums[:, None] + steps), terms).cumsum(axis=1)
            rows[:, block] = (odds <= rng.random((n, 1)) * odds[:, -1:]).sum(axis=1)
            sums += steps[rows[:, block]]
        return rows

    def _odds(self, onward: Floats, terms: Floats) -> Floats:
        if not self._logs:
            return onward * terms
        logs: Floats = onward + terms
        odds: Floats = np.exp(logs - logs.max(axis=1, keepdims=True))
        return odds


def _padded(size: int, value: float, outside: float) -> Floats:
    values = np.full(size + 2, value)
    values[0] = values[-1] = outside
    return values
