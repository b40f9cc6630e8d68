import itertools

import numpy as np
import pytest

from nni_blockswap.cost.table import Column
from nni_blockswap.methods import counting
from nni_blockswap.methods.counting import Grid, Walk

COSTS = (np.array([90, 10, 50]), np.array([7, 19, 13]), np.array([100, 400]), np.array([31]))
"""18 choices; after the least of each block: 80, 0, 40 - 0, 12, 6 - 0, 300 - 0: all even."""
OTHER = (np.array([1, 5, 2]), np.array([0, 3, 8]), np.array([4, 1]), np.array([2]))
ROWS = list(itertools.product(*(range(len(block)) for block in COSTS)))


def totals(costs: tuple[np.ndarray, ...], fixed: int = 0) -> list[int]:
    return [fixed + sum(int(block[k]) for block, k in zip(costs, row, strict=True)) for row in ROWS]


@pytest.mark.parametrize("window", [(0, 9999), (0, 1148), (1160, 1200), (1154, 1154), (1300, 1530), (1540, 1600)])
def test_against_enumeration(window: tuple[int, int]) -> None:
    grid = Grid(Column("", 1000, COSTS), window)
    assert grid.unit == 2
    assert (grid.base, grid.total(grid.top)) == (min(totals(COSTS, 1000)), max(totals(COSTS, 1000)))
    both = zip(totals(COSTS, 1000), totals(OTHER), strict=True)
    inside = [other for total, other in both if window[0] <= total <= window[1]]
    assert Walk(grid).mass == len(inside)
    if inside:
        least, most = grid.extremes(OTHER)
        assert (least.root, most.root) == (min(inside), max(inside))


@pytest.mark.parametrize(("low", "high"), [(1149, 1153), (1200, 1200), (1281, 1299), (1161, 1187), (1148, 1148)])
def test_the_gap_around_an_empty_window(low: int, high: int) -> None:
    reached = sorted(totals(COSTS, 1000))
    gap = Grid(Column("", 1000, COSTS), (low, high)).gap()
    if any(low <= total <= high for total in reached):
        assert gap is None
    else:
        assert gap == (max(t for t in reached if t < low), min(t for t in reached if t > high))


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("logarithms", [False, True])
def test_draws_go_by_weight(monkeypatch: pytest.MonkeyPatch, logarithms: bool, scale: float) -> None:
    """At scale 1e3 the weights are like exp(-8000) to exp(-500), all but the greatest out of reach of float64."""
    if logarithms:
        monkeypatch.setattr(counting, "_WIDEST", -1.0)
    window = (1150, 1200)
    weights = tuple(-0.3 * scale * block for block in OTHER)
    walk = Walk(Grid(Column("", 1000, COSTS), window), weights)
    logs = {
        row: -0.3 * scale * other
        for row, total, other in zip(ROWS, totals(COSTS, 1000), totals(OTHER), strict=True)
        if window[0] <= total <= window[1]
    }
    top = max(logs.values())
    shares = {row: np.exp(log - top) for row, log in logs.items()}
    mass = sum(shares.values())
    assert walk.log_mass == pytest.approx(top + np.log(mass), rel=1e-12)
    if scale == 1.0:
        assert walk.mass == pytest.approx(mass * np.exp(top), rel=1e-12)
    draws = 20_000
    rows = walk.draw(draws, np.random.default_rng(0))
    for row, share in shares.items():
        expected = share / mass
        found = (rows == row).all(axis=1).mean()
        assert abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / draws)
