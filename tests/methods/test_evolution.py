from typing import Any

import numpy as np
import pytest

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices
from nni_blockswap.methods.base import Problem
from nni_blockswap.methods.evolution import Evolution
from tests.methods.test_contract import converse
from tests.methods.test_sampler import middle, random_table, within


@pytest.mark.parametrize("band", [{"at_most": True}, {"tolerance": 0.05}, {}], ids=str)
def test_children_in_a_tight_budget_are_many_and_feasible(band: dict[str, Any]) -> None:
    table = random_table(8)
    budget = Budget(params=middle(table, "params", 0.3), macs=middle(table, "macs", 0.3), **band)
    feasible = within(table, budget)
    samples = len(feasible) // 2
    _, full = converse("evolution", Problem(table, budget, samples, seed=0), lambda row, init: float(sum(row)))
    assert set(full) <= feasible
    assert len(full) == samples > 15


def test_it_climbs() -> None:
    """Rarely does the best of 60 of 576 come by chance; each block of it is worth the same."""
    table = random_table(9)
    budget = Budget(params=middle(table, "params", 0.99), at_most=True)
    rng = np.random.default_rng(0)
    values = [rng.permutation(len(names)) / len(names) for names in table.candidates]

    def score(row: Indices, init: int) -> float:
        return sum(float(block[i]) for block, i in zip(values, row, strict=True))

    best = max(score(row, 0) for row in within(table, budget))
    found = [
        max(converse("evolution", Problem(table, budget, 60, seed), score)[1].values()) == best for seed in range(20)
    ]
    assert sum(found) >= 6  # by chance each is found with probability 60 / 576: six of 20 once in a hundred times


def test_the_oldest_die() -> None:
    table = random_table(9)
    method = Evolution(Problem(table, Budget(params=1.0), samples=50, seed=0))
    first = method.ask()
    assert first is not None
    assert len(first.rows) == 10
    method.tell(dict.fromkeys(first.rows, 1.0))
    born = []
    for _ in range(4):
        request = method.ask()
        assert request is not None
        born += request.rows
        method.tell(dict.fromkeys(request.rows, -1.0))
    assert list(method._population) == born[-10:]  # the first were better, and are gone
