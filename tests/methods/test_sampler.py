import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2, chi2_contingency

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Column, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods import box, counting
from nni_blockswap.methods.sampler import Sampler

Costs = Sequence[Sequence[int]]


def table_of(params: Costs, macs: Costs, fixed: tuple[int, int] = (0, 0)) -> Table:
    """A table whose candidates have no meaning but their costs."""
    return Table(
        labels=tuple(f"block_{number:02d}" for number in range(len(params))),
        candidates=tuple(("S", *(f"G({k})" for k in range(2, len(block) + 1))) for block in params),
        columns={
            "params": Column("parameters", fixed[0], tuple(np.array(block) for block in params)),
            "macs": Column("MACs", fixed[1], tuple(np.array(block) for block in macs)),
        },
    )


def random_table(seed: int) -> Table:
    """Six blocks, 2 * 3 * 4 * 4 * 3 * 2 = 576 architectures; MACs go with parameters, loosely, as in a network."""
    rng = np.random.default_rng(seed)
    sizes, scales = (2, 3, 4, 4, 3, 2), (1, 3, 9, 1, 3, 9)
    params = [rng.integers(1, 40, size) * scale for size, scale in zip(sizes, scales, strict=True)]
    macs = [block * int(rng.integers(1, 5)) + 7 * rng.integers(0, 60, len(block)) for block in params]
    return table_of([block.tolist() for block in params], [block.tolist() for block in macs], (300, 100))


def every(table: Table) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(names)) for names in table.candidates)))


def within(table: Table, budget: Budget) -> set[tuple[int, ...]]:
    """The slow reference: every architecture, one by one; figures are counts."""

    def meets(row: tuple[int, ...]) -> bool:
        spent = [Fraction(table.total(resource, row), int(figure)) for resource, figure in budget.limits]
        if budget.tolerance is not None:
            return all(abs(share - 1) <= Fraction(str(budget.tolerance)) for share in spent)
        return max(spent) <= 1 and (budget.at_most or max(spent) >= Fraction(95, 100))

    return set(filter(meets, every(table)))


def middle(table: Table, resource: str, share: float) -> int:
    """A total with about ``share`` of all architectures below it."""
    return int(np.quantile([table.total(resource, row) for row in every(table)], share))


# The three ways of drawing under two limits: from a list, by rejection, and by rejection with weights as logarithms.
@pytest.fixture(params=["listed", "rejected", "logarithms"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "listed":
        monkeypatch.setattr(box, "_LISTED", 0)
    if request.param == "logarithms":
        monkeypatch.setattr(counting, "_WIDEST", 0.0)
    return str(request.param)


BUDGETS = [
    # (quantile of parameters, of MACs, tolerance; 0 is at most)
    (0.3, None, 0),
    (0.3, None, None),
    (0.5, None, 0.02),
    (None, 0.2, 0),
    (None, 0.7, None),
    (None, 0.8, 0.03),
    (0.6, 0.5, 0),
    (0.6, 0.5, None),  # either can be used up
    (0.9, 0.05, 0),
    (0.9, 0.3, None),  # the MACs alone
    (0.5, 0.5, 0.1),
    (0.3, 0.7, 0.08),  # dear in MACs for its parameters
    (0.7, 0.3, 0.08),  # cheap
]


def budget_at(table: Table, params: float | None, macs: float | None, tolerance: float | None = None) -> Budget:
    return Budget(
        params=None if params is None else middle(table, "params", params),
        macs=None if macs is None else middle(table, "macs", macs),
        tolerance=tolerance or None,
        at_most=tolerance == 0,
    )


@pytest.mark.parametrize("quantiles", BUDGETS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_counts_and_finds_what_enumeration_finds(way: str, seed: int, quantiles: tuple[float, float, float]) -> None:
    table = random_table(seed)
    budget = budget_at(table, *quantiles)
    feasible = within(table, budget)
    assert len(feasible) > 10
    samples = Sampler(table, budget)
    if None in quantiles[:2] or way == "listed":
        assert (samples.count, samples.count_error) == (len(feasible), 0)
    else:
        assert 0 < samples.count_error < 0.02
        assert samples.count == pytest.approx(len(feasible), rel=4 * samples.count_error)
    drawn = samples.sample(1000, np.random.default_rng(seed))
    assert len(drawn) == len(feasible)
    assert set(drawn) == feasible


@pytest.mark.parametrize("quantiles", BUDGETS, ids=str)
def test_samples_are_uniform(way: str, quantiles: tuple[float, float, float]) -> None:
    """In R samples of n out of N each architecture is found R n / N times, with variance R n/N (1 - n/N)."""
    table = random_table(7)
    budget = budget_at(table, *quantiles)
    feasible = within(table, budget)
    samples, rng = Sampler(table, budget), np.random.default_rng(5)
    share = (n := len(feasible) // 3) / len(feasible)
    rounds = 30 * len(feasible) // n
    found = Counter(row for _ in range(rounds) for row in samples.sample(n, rng))
    counts = np.array([found[row] for row in feasible])
    assert counts.sum() == rounds * n
    statistic = ((counts - rounds * share) ** 2).sum() / (rounds * share * (1 - share)) * (1 - 1 / len(feasible))
    assert 0.001 < chi2.sf(statistic, len(feasible) - 1) < 0.999


# --- the paper's WRN-40-2, from the closed forms of section 3.1 -----------------------------------------------------


def wrn_block(width_in: int, width: int, size_in: int) -> list[tuple[int, int]]:
    """(parameters, MACs) of a block's candidates, duplicates dropped; BN stands between any two convolutions."""
    size = size_in * width_in // width if width_in >= 32 else size_in
    here, before, middle_width = size**2, size_in**2, width // 2
    costs = {"S": (9 * (width_in + width) * width + 2 * width, 9 * (width_in + width) * width * here)}
    for divisor in (2, 4):
        m = width // divisor
        costs[f"B({divisor})"] = (
            width_in * m + 9 * m * m + m * width + 4 * m,
            width_in * m * before + (9 * m * m + m * width) * here,
        )
    for first, second in dict.fromkeys(
        [(g, g) for g in (2, 4, 8, 16)] + [(width_in // d, width // d) for d in (16, 8, 4, 2, 1)]
    ):
        weights = 9 * width_in**2 // first + width_in * width + 9 * width**2 // second + width**2
        costs[f"G({first},{second})"] = (weights + 2 * (width_in + 2 * width), weights * here)
    for groups in dict.fromkeys([2, 4, 8, 16, *(middle_width // d for d in (16, 8, 4, 2, 1))]):
        if groups > 1:  # BG(2,1) is B(2)
            m = middle_width
            spatial = 9 * m * m // groups + m * width
            costs[f"BG({groups})"] = (width_in * m + spatial + 4 * m, width_in * m * before + spatial * here)
    return list(costs.values())


@pytest.fixture(scope="module")
def wrn() -> Table:
    stages = [(16, 32, 32), *[(32, 32, 32)] * 5, (32, 64, 32), *[(64, 64, 16)] * 5, (64, 128, 16), *[(128, 128, 8)] * 5]
    blocks = [wrn_block(*stage) for stage in stages]
    shortcuts = 16 * 32 * 1024 + 32 * 64 * 256 + 64 * 128 * 64
    fixed = 2_243_546 - sum(block[0][0] for block in blocks), 432 * 1024 + shortcuts + 1280
    return table_of([[params for params, _ in b] for b in blocks], [[macs for _, macs in b] for b in blocks], fixed)


def test_the_space(wrn: Table) -> None:
    assert [len(names) for names in wrn.candidates] == [16, *[12] * 5, 17, *[14] * 5, 18, *[16] * 5]
    blocks, fixed = wrn.column("params").costs, wrn.column("params").fixed
    assert (fixed + sum(map(min, blocks)), fixed + sum(map(max, blocks))) == (146_538, 2_243_546)
    assert wrn.total("macs", wrn.original()) == pytest.approx(327.60e6, abs=5e3)
    assert Sampler(wrn, Budget(params=1.0, at_most=True)).count == pytest.approx(6.87e20, rel=1e-3)


@pytest.mark.parametrize(
    ("budget", "share"),
    [("556K", 5.1e-2), ("400K", 5.0e-2), ("800K", 2.2e-2), ("200K", 3e-4), ("162.2K", 3.4e-7), ("150K", 2.3e-10)],
)
def test_known_shares_of_the_space(wrn: Table, budget: str, share: float) -> None:
    everything = float(np.prod([len(names) for names in wrn.candidates], dtype=np.float64))
    count = Sampler(wrn, Budget.parse(budget, 0.025)).count
    assert count / everything == pytest.approx(share, rel=0.05)
    if budget == "150K":
        assert count == pytest.approx(1.5e11, rel=0.05)


@pytest.mark.parametrize(
    ("text", "tolerance"),
    [
        ("400K", 0.025),
        ("150K", 0.025),
        ("147K", None),
        ("2.2M", 0.01),
        ("macs=23M", None),
        ("macs=310M", 0.02),
        ("params=400K,macs=90M", 0.025),
        ("params=400K,macs=150M", 0.025),  # as dear in MACs as it gets
        ("params=400K,macs=30M", None),  # one in 5e4 of those with at most 400K parameters
        ("params=682K,macs=55M", 0.01),  # MACs reach from 55.38M: weights leave the range of float64
        ("params=147K,macs=23M", None),
    ],
)
def test_samples_meet_extreme_budgets(wrn: Table, text: str, tolerance: float | None) -> None:
    budget = Budget.parse(text, tolerance, at_most=tolerance is None)
    drawn = Sampler(wrn, budget).sample(500, np.random.default_rng(0))
    assert len(set(drawn)) == len(drawn) == 500
    for resource, (low, high) in budget.bounds(wrn).items():
        assert all(low <= wrn.total(resource, row) <= high for row in drawn)


def test_tilted_samples_are_distributed_as_plain_ones(wrn: Table) -> None:
    both = Budget.parse("params=400K,macs=52M", 0.025)
    tilted = Sampler(wrn, both).sample(3000, np.random.default_rng(1))
    low, high = both.bounds(wrn)["macs"]
    sized = Sampler(wrn, Budget(params=400_000, tolerance=0.025)).sample(60_000, np.random.default_rng(2))
    plain = [row for row in sized if low <= wrn.total("macs", row) <= high]
    assert len(plain) > 1500
    for block in (0, 3, 6, 9, 12, 17):
        choices = [np.bincount([row[block] for row in rows], minlength=18) for rows in (tilted, plain)]
        seen = np.array(choices)[:, np.sum(choices, axis=0) > 10]
        assert chi2_contingency(seen).pvalue > 1e-4


# --- same seed, same samples ----------------------------------------------------------------------------------------

PROGRAM = """
import json, numpy as np
from nni_blockswap.cost.budget import Budget
from nni_blockswap.methods.sampler import Sampler
from tests.methods.test_sampler import random_table
print(json.dumps([Sampler(random_table(3), b).sample(20, np.random.default_rng(9)) for b in {budgets}]))
"""


def test_same_seed_same_samples_in_another_process_too() -> None:
    table = random_table(3)
    budgets = [budget_at(table, *quantiles) for quantiles in BUDGETS]
    here = [Sampler(table, budget).sample(20, np.random.default_rng(9)) for budget in budgets]
    assert here == [Sampler(table, budget).sample(20, np.random.default_rng(9)) for budget in budgets]
    assert here[0] != Sampler(table, budgets[0]).sample(20, np.random.default_rng(8))
    program = PROGRAM.format(budgets=budgets)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert [[tuple(row) for row in rows] for rows in json.loads(done.stdout)] == here


@pytest.mark.parametrize("text", ["params=1070", "params=1070,macs=20"])
def test_too_few_are_all_returned_in_random_order(text: str) -> None:
    table = table_of([[30, 40], [10, 30]], [[5, 6], [7, 7]], (1000, 0))
    samples = Sampler(table, Budget.parse(text, at_most=True))
    orders = {tuple(samples.sample(5, np.random.default_rng(seed))) for seed in range(60)}
    assert orders <= set(itertools.permutations([(0, 0), (0, 1), (1, 0), (1, 1)]))
    assert len(orders) > 15  # of 24


def test_a_space_of_more_architectures_than_floating_point_counts() -> None:
    costs = tuple(np.array([9, 1, 1, 1]) for _ in range(600))  # 4^600 = 1.7e361
    table = Table(
        tuple(f"block_{n:03d}" for n in range(600)), (("S", "T", "U", "V"),) * 600, {"params": Column("p", 0, costs)}
    )
    budget = Budget(params=600 * 9 - 8 * 100, tolerance=1e-3)
    rows = Sampler(table, budget).sample(5, np.random.default_rng(0))
    assert len(set(rows)) == 5
    low, high = budget.bounds(table)["params"]
    assert all(low <= sum(9 if pick == 0 else 1 for pick in row) <= high for row in rows)


def test_nothing_is_asked_nothing_is_drawn() -> None:
    assert Sampler(random_table(0), Budget(params=1.0)).sample(0, np.random.default_rng(0)) == []


# --- ranges and refusals --------------------------------------------------------------------------------------------


GAPPED = table_of([[0, 100], [0, 10]], [[0, 5], [0, 50]], (1000, 100))
"""(parameters, MACs): (1000, 100), (1010, 150), (1100, 105), (1110, 155)."""


BELOW = "take everything below with at_most (--at-most)"
SPACE = "parameters reach from 1,000 to 1,110 in this space"


@pytest.mark.parametrize(
    ("text", "tolerance", "asked", "reach"),
    [
        ("999", 0, "at most 999 parameters", f"{SPACE}; choose within that range."),
        ("2K", None, "1,900 to 2,000 parameters", f"{SPACE}; choose within that range."),
        (
            "1090", None, "1,036 to 1,090 parameters",
            f"{SPACE}, but none between 1,010 and 1,100; choose one of these or {BELOW}.",
        ),
        (
            "params=1090,macs=140", None,
            "at most 1,090 parameters and at most 140 MACs, 95 % of one of them used",
            f"the nearest that was found has 1,000 parameters; lower that figure to it or {BELOW}.",
        ),
        (
            "params=999,macs=140", None, "at most 999 parameters", f"{SPACE}; choose within that range.",
        ),
        ("2K", 0.1, "1,800 to 2,200 parameters", f"{SPACE}; choose within that range."),
        (
            "1050", 0.02, "1,029 to 1,071 parameters",
            f"{SPACE}, but none between 1,010 and 1,100; choose one of these or widen the tolerance.",
        ),
        (
            "1005", 0.001, "1,004 to 1,006 parameters",
            f"{SPACE}, but none between 1,000 and 1,010; choose one of these or widen the tolerance.",
        ),
        ("macs=50%", 0, "at most 50 MACs", "MACs reach from 100 to 155 in this space; choose within that range."),
        (
            "params=1100,macs=152", 0.011, "151 to 153 MACs",
            "MACs reach from 100 to 155 in this space, but none between 150 and 155; choose one of these or widen the "
            "tolerance.",
        ),
        (
            "params=1005,macs=155", 0.006, "155 to 155 MACs with 999 to 1,011 parameters",
            "MACs reach from 100 to 150 there; choose within that range.",
        ),
        (
            "params=1005,macs=104", 0.02, "102 to 106 MACs with 985 to 1,025 parameters",
            "MACs reach from 100 to 150 there, but not in the band; widen the tolerance.",
        ),
    ],
)  # fmt: skip
def test_a_budget_out_of_reach_says_what_is_within(text: str, tolerance: float | None, asked: str, reach: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Sampler(GAPPED, Budget.parse(text, tolerance or None, tolerance == 0))
    assert str(caught.value) == f"No architecture has {asked}: {reach}"


def test_luck_alone_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "_LISTED", 0)
    monkeypatch.setattr(box, "_MOST_DRAWS", 2 * box.BATCH)
    table = table_of([[1, 2], [1, 2], [1, 9]], [[0, 50], [0, 50], [0, 75]])  # 75 MACs only with 11 parameters and more
    with pytest.raises(BudgetError, match="Undecided whether any architecture has 57 to 93 MACs with 3 to 5 param"):
        Sampler(table, Budget.parse("params=4,macs=75", 0.25))


@pytest.fixture
def too_fine(monkeypatch: pytest.MonkeyPatch) -> Table:
    """A space whose sums of MACs are too many for tables."""
    table = random_table(4)
    sums = [counting.Grid(table.column(resource)).top for resource in ("params", "macs")]
    assert 2 * sums[0] < sums[1]
    monkeypatch.setattr(box, "_MOST_SUMS", 1.5 * sums[0])
    return table


@pytest.mark.parametrize("tolerance", [None, 0, 0.03])
def test_macs_without_a_common_divisor(too_fine: Table, tolerance: float | None) -> None:
    budget = budget_at(too_fine, None, 0.5, tolerance)
    feasible = within(too_fine, budget)
    samples = Sampler(too_fine, budget)
    assert samples.count == len(feasible)
    assert set(samples.sample(1000, np.random.default_rng(0))) == feasible
    with pytest.raises(BudgetError, match=r"No architecture has at most 9 MACs: MACs reach from [\d,]+ to [\d,]+ in"):
        Sampler(too_fine, Budget(macs=9, at_most=True))
