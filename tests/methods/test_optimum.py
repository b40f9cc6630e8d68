import numpy as np
import pytest

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Column, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods.optimum import optima
from nni_blockswap.methods.sampler import Sampler
from tests.methods.test_sampler import GAPPED, middle, random_table, within

BUDGETS = [
    # (quantiles of parameters, MACs, memory; tolerance, 0 is at most)
    (0.3, None, None, 0),
    (0.3, None, None, None),
    (None, 0.5, None, 0.02),
    (None, None, 0.1, 0),
    (0.6, 0.5, None, 0),
    (0.6, 0.5, None, None),
    (0.5, 0.5, None, 0.1),
    (0.3, 0.7, None, 0.08),
    (0.6, 0.5, 0.4, 0),
    (0.6, 0.5, 0.4, None),
    (0.5, 0.5, 0.5, 0.15),
]


def three_resources(seed: int) -> Table:
    """``random_table`` and a third resource, of nine digits: as exact a sum as floating point can lose."""
    table = random_table(seed)
    rng = np.random.default_rng([seed, 1])
    memory = tuple(rng.integers(10**8, 10**9, len(names)) for names in table.candidates)
    return Table(table.labels, table.candidates, {**table.columns, "memory": Column("bytes", 77, memory)})


def sums(values: list[np.ndarray], rows: list[tuple[int, ...]]) -> list[float]:
    return [sum(float(block[i]) for block, i in zip(values, row, strict=True)) for row in rows]


@pytest.mark.parametrize("quantiles", BUDGETS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_best_are_those_that_enumeration_finds(seed: int, quantiles: tuple[float | None, ...]) -> None:
    table = three_resources(seed)
    limits = dict(zip(("params", "macs", "memory"), quantiles[:3], strict=True))
    figures = {name: middle(table, name, share) for name, share in limits.items() if share is not None}
    budget = Budget(tolerance=quantiles[3] or None, at_most=quantiles[3] == 0, **figures)
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=len(names)) for names in table.candidates]
    feasible = sorted(within(table, budget), key=lambda row: sums(values, [row]))
    assert len(feasible) > 5
    assert optima(values, table, budget, k=5) == feasible[:5]


def fine_table(count: int = 14) -> Table:
    """Two candidates a block with costs near 1e11: sums that differ by one unit in 1e12."""
    costs = [np.array([10**11 + 2**number, 0]) for number in range(count)]
    names = tuple(("S", "T") for _ in costs)
    return Table(tuple(f"block_{n:02d}" for n in range(count)), names, {"params": Column("bytes", 0, tuple(costs))})


@pytest.mark.parametrize("kept", [0b10110, 0b11010110011, 0b1])
def test_a_unit_too_much_is_too_much_and_a_budget_met_to_the_unit_is_met(kept: int) -> None:
    """As many S as the cap lets; which of them, the last digits of the sum decide."""
    table = fine_table()
    blocks = len(table.labels)
    chosen = tuple(0 if kept >> block & 1 else 1 for block in range(blocks))
    total = table.total("params", chosen)
    values = [np.array([-1.0, 0.0]) if choice == 0 else np.array([-0.999, 0.0]) for choice in chosen]
    assert optima(values, table, Budget(params=total, at_most=True)) == [chosen]
    (other,) = optima(values, table, Budget(params=total - 1, at_most=True))
    assert other != chosen
    assert table.total("params", other) <= total - 1


def test_values_of_any_size_and_equal_ones() -> None:
    table = random_table(2)
    budget = Budget(params=middle(table, "params", 0.4), at_most=True)
    values = [np.random.default_rng(3).normal(size=len(names)) for names in table.candidates]
    expected = optima(values, table, budget, k=3)
    assert optima([1e9 * block + 1e6 for block in values], table, budget, k=3) == expected
    assert optima([1e-12 * block for block in values], table, budget, k=3) == expected
    same = [np.zeros(len(names)) for names in table.candidates]
    assert len(set(optima(same, table, budget, k=6))) == 6


@pytest.mark.parametrize("huge", [1e6, 1e10, 1e18])
def test_one_huge_value_does_not_drown_the_others(huge: float) -> None:
    table = random_table(1)
    rng = np.random.default_rng(1)
    values = [rng.random(len(names)) for names in table.candidates]
    for block in (0, 2):
        values[block][-1] = huge
    budget = Budget(params=middle(table, "params", 0.4), at_most=True)
    feasible = sorted(within(table, budget), key=lambda row: sums(values, [row]))
    assert optima(values, table, budget, k=4) == feasible[:4]


def test_where_fewer_meet_the_budget_all_are_found() -> None:
    values = [np.array([0.0, 1.0]), np.array([0.0, 3.0])]
    assert optima(values, GAPPED, Budget(params=1100, at_most=True), k=9) == [(0, 0), (1, 0), (0, 1)]


@pytest.mark.parametrize(
    "text",
    ["999", "2K", "params=1090,macs=140", "1050+-2%", "params=1100,macs=152+-1.1%", "params=1005,macs=155+-0.6%"],
)
def test_an_infeasible_budget_ends_in_the_samplers_sentence(text: str) -> None:
    budget = Budget.parse(text)
    with pytest.raises(BudgetError) as expected:
        Sampler(GAPPED, budget)
    with pytest.raises(BudgetError) as caught:
        optima([np.zeros(2)] * 2, GAPPED, budget)
    assert str(caught.value) == str(expected.value)
