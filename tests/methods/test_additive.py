import itertools
import math

import numpy as np
import pytest

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices
from nni_blockswap.methods.additive import fit
from nni_blockswap.methods.base import Problem
from tests.methods.test_contract import converse
from tests.methods.test_sampler import middle, random_table, within

SIZES = (2, 3, 4)
ROWS = list(itertools.product(*map(range, SIZES)))
VALUES = [np.array([0.0, 1.03]), np.array([0.52, -0.57, 0.0]), np.array([2.0, 0.07, -1.0, 0.31])]


def total(row: Indices) -> float:
    return sum(float(block[i]) for block, i in zip(VALUES, row, strict=True))


@pytest.mark.parametrize("logarithm", [False, True])
def test_what_is_additive_is_found_to_be(logarithm: bool) -> None:
    scores = [math.exp(3 * total(row)) if logarithm else total(row) for row in ROWS]
    found = fit(ROWS, scores, SIZES)
    assert found.logarithm == logarithm
    assert found.correlation > 0.999
    scale = 3 if logarithm else 1
    for weights, values in zip(found.weights, VALUES, strict=True):
        np.testing.assert_allclose(weights - weights.mean(), scale * (values - values.mean()), atol=0.01 * scale)


def test_noise_has_no_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(SIZES).tolist()) for _ in range(300)]
    assert abs(fit(rows, rng.exponential(size=300).tolist(), SIZES).correlation) < 0.2


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_best_of_all_is_found_with_a_part_of_the_scores(higher_is_better: bool) -> None:
    """Of 576 architectures, additive scores with products of neighbours on top."""
    table = random_table(6)
    rng = np.random.default_rng(1)
    values = [rng.normal(size=len(names)) for names in table.candidates]
    sign = 1 if higher_is_better else -1

    def score(row: Indices, init: int) -> float:
        parts = [float(block[i]) for block, i in zip(values, row, strict=True)]
        return sign * (sum(parts) + 0.1 * sum(a * b for a, b in itertools.pairwise(parts)))

    budget = Budget(params=middle(table, "params", 0.5), macs=middle(table, "macs", 0.5), at_most=True)
    feasible = within(table, budget)
    best = max(feasible, key=lambda row: sign * score(row, 0))
    problem = Problem(table, budget, samples=80, seed=0, higher_is_better=higher_is_better)
    _, full = converse("additive", problem, score)
    assert len(full) < len(feasible) / 2
    assert best in full
