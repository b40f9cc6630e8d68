import numpy as np
import pytest

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices
from nni_blockswap.methods import halving
from nni_blockswap.methods.base import Problem
from nni_blockswap.methods.halving import Halving
from tests.methods.test_contract import converse, score_of
from tests.methods.test_sampler import random_table

TABLE = random_table(1)
PROBLEM = Problem(TABLE, Budget(params=1.0, at_most=True), samples=50, seed=0, inits=5)


def test_the_better_are_scored_under_more_draws() -> None:
    method = Halving(PROBLEM)
    score = score_of(TABLE)
    rows: tuple[Indices, ...] = ()
    means: dict[Indices, float] = {}
    for count, inits in ((50, 1), (25, 3), (5, 5)):
        request = method.ask()
        assert request is not None
        assert (len(request.rows), request.inits) == (count, inits)
        if rows:
            assert set(request.rows) == set(sorted(rows, key=lambda row: means[row], reverse=True)[:count])
        rows = request.rows
        means = {row: float(np.mean([score(row, init) for init in range(inits)])) for row in rows}
        method.tell(means)
    assert method.ask() is None


def test_with_everything_kept_all_scores_are_full_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halving, "SHARES", (1.0, 1.0, 1.0))
    _, kept = converse("halving", PROBLEM, score_of(TABLE))
    _, full = converse("uniform", PROBLEM, score_of(TABLE))
    assert kept == full
