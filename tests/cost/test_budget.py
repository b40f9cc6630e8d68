import shlex
from typing import Any

import numpy as np
import pytest

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.resources import RESOURCES
from nni_blockswap.cost.resources.latency import LATENCY, Conditions, Latency
from nni_blockswap.cost.table import Column, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.spaces import cost_table
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import SMALL, WRN

TABLE = Table(
    labels=("block_00", "block_01"),
    candidates=(("S", "B(2)"), ("S", "G(2)")),
    columns={
        "params": Column("parameters", 10, (np.array([500, 100]), np.array([490, 40]))),
        "macs": Column("MACs", 1000, (np.array([7000, 900]), np.array([2000, 300]))),
    },
)
"""The teacher has 1,000 parameters and 10,000 MACs."""


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("400000", Budget(params=400_000)),
        (400000, Budget(params=400_000)),
        ("400K", Budget(params=400_000)),
        ("400k", Budget(params=400_000)),
        ("2.1M", Budget(params=2_100_000)),
        ("0.81G", Budget(params=810_000_000)),
        ("36%", Budget(params=0.36)),
        ("params=400K", Budget(params=400_000)),
        ("macs=90M", Budget(macs=90_000_000)),
        ("macs=12.5%", Budget(macs=0.125)),
        ("params=400K,macs=90M", Budget(params=400_000, macs=90_000_000)),
        (" MACs=90M, 36% ", Budget(params=0.36, macs=90_000_000)),
        ("400K+-2.5%", Budget(params=400_000, tolerance=0.025)),
        ("400K-5%", Budget(params=400_000)),
        ("params=36%, macs=90M -5%", Budget(params=0.36, macs=90_000_000)),
        ("400K+-5%", Budget(params=400_000, tolerance=0.05)),
    ],
)
def test_parse(text: str | int, budget: Budget) -> None:
    assert Budget.parse(text) == budget


def test_the_tolerance_may_stand_in_the_text_or_beside_it() -> None:
    band = Budget(params=400_000, tolerance=0.025)
    assert Budget.parse("400K", 0.025) == Budget.parse("400K+-2.5%", 0.025) == band
    with pytest.raises(BudgetError, match=r"'400K\+-2.5%' has a tolerance of its own, which is not 0.05"):
        Budget.parse("400K+-2.5%", 0.05)
    assert Budget.parse("400K", at_most=True) == Budget(params=400_000, at_most=True) != Budget.parse("400K")
    for text, given in (("400K", {"tolerance": 0.1, "at_most": True}), ("400K+-2.5%", {"at_most": True})):
        with pytest.raises(BudgetError, match="a tolerance makes a band, and at_most takes everything below"):
            Budget.parse(text, **given)
    for given in ({"tolerance": 0.05}, {"at_most": True}):
        with pytest.raises(BudgetError, match=r"'400K-5%' says itself how much of it to use"):
            Budget.parse("400K-5%", **given)


@pytest.mark.parametrize(
    ("budget", "label"),
    [
        (Budget(params=400_000), "400K-5%"),
        (Budget(params=811_370), "811370-5%"),
        (Budget(params=2_100_000), "2.1M-5%"),
        (Budget(params=999), "999-5%"),
        (Budget(params=810_000_000), "810M-5%"),
        (Budget(params=10**12), "1000G-5%"),
        (Budget(params=0.36), "36%-5%"),
        (Budget(params=1.0), "100%-5%"),
        (Budget(params=1e-7), "0.00001%-5%"),
        (Budget(macs=90_000_000), "macs=90M-5%"),
        (Budget(params=0.07, macs=90_000_000), "params=7%,macs=90M-5%"),
        (Budget(params=400_000, tolerance=0.025), "400K+-2.5%"),
        (Budget(params=1, macs=0.29, tolerance=1e-5), "params=1,macs=29%+-0.001%"),
    ],
)
def test_the_label_is_short_and_reads_back(budget: Budget, label: str) -> None:
    assert str(budget) == label
    assert Budget.parse(label) == budget
    assert str(Budget(**dict(budget.limits), at_most=True)) == budget.figures  # as searches were labelled that had caps
    assert not set(label) & set('/\\:*?"<>| ')


@pytest.mark.parametrize(
    ("budget", "folder"),
    [
        (Budget(params=400_000), "400K"),
        (Budget(params=0.33), "33pct"),
        (Budget(macs=20_000_000, tolerance=0.05), "macs-20M-5pct"),
        (Budget(params=0.36, macs=90_000_000, at_most=True), "params-36pct-macs-90M-at-most"),
        (Budget(params=400_000, tolerance=0.025), "400K-2.5pct"),
    ],
)
def test_a_folder_has_a_name_that_needs_no_quotes(budget: Budget, folder: str) -> None:
    assert budget.folder == folder == shlex.quote(folder)


def test_every_figure_reads_back() -> None:
    rng = np.random.default_rng(0)
    for params, share, tolerance in zip(rng.integers(1, 10**9, 200), rng.random(200), rng.random(200), strict=True):
        budget = Budget(params=int(params), macs=float(share), tolerance=float(tolerance))
        assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "tolerance", "bounds"),
    [
        ("400", 0, {"params": (0, 400)}),
        ("macs=5K", 0, {"macs": (0, 5000)}),
        ("400", None, {"params": (380, 400)}),
        ("403", None, {"params": (383, 403)}),  # from 382.85 on: inclusive bounds lie inside
        ("29%", None, {"params": (276, 290)}),  # from 275.5 on
        ("400", 0.025, {"params": (390, 410)}),
        ("403", 0.025, {"params": (393, 413)}),  # 392.925 to 413.075
        ("35%,macs=9K", 0, {"params": (0, 350), "macs": (0, 9000)}),
        ("35%,macs=9K", None, {"params": (0, 350), "macs": (0, 9000)}),  # of one of them 95 % are used
        ("29%", 0.1, {"params": (261, 319)}),  # floats would say 260.99999999999994 and 319.00000000000006
        ("100%,macs=36%", 0.5, {"params": (500, 1500), "macs": (1800, 5400)}),
        ("0.16%", 0, {"params": (0, 1)}),
        ("0.16%", None, {"params": (1, 1)}),
    ],
)
def test_bounds(text: str, tolerance: float | None, bounds: dict[str, tuple[int, int]]) -> None:
    assert Budget.parse(text, tolerance or None, at_most=tolerance == 0).bounds(TABLE) == bounds


@pytest.mark.parametrize(
    "limits", [{"params": 0.35}, {"params": 350, "macs": 9000}, {"flash": 77, "params": 350, "macs": 0.9},
               {"params": 350, "macs": 9000, "tolerance": 0.15}], ids=str,
)  # fmt: skip
def test_the_boxes_have_nothing_in_common_and_are_the_budget(limits: dict[str, Any]) -> None:
    columns = {**TABLE.columns, "flash": Column("bytes", 0, (np.array([50, 10]), np.array([27, 20])))}
    table = Table(TABLE.labels, TABLE.candidates, columns)
    budget, rng = Budget(**limits), np.random.default_rng(0)
    caps, boxes = {"params": 350, "macs": 9000, "flash": 77}, budget.boxes(table)
    for spent in rng.uniform(0.8, 1.2, (500, 3)):
        costs = {name: int(cap * share) for (name, cap), share in zip(caps.items(), spent, strict=True)}
        shares = [costs[name] / caps[name] for name in budget.resources]
        if budget.tolerance is None:
            meets = max(shares) <= 1 and max(shares) >= 0.95
        else:
            meets = all(0.85 <= share <= 1.15 for share in shares)
        inside = [all(low <= costs[name] <= high for name, (low, high) in box.items()) for box in boxes]
        assert sum(inside) == meets == budget.admits(table, costs), costs


def test_what_a_budget_means_is_told_in_its_units() -> None:
    assert Budget.parse("35%").describe(TABLE) == "333 to 350 parameters"
    assert Budget.parse("35%", at_most=True).describe(TABLE) == "at most 350 parameters"
    both = Budget.parse("35%,macs=9K").describe(TABLE)
    assert both == "at most 350 parameters and at most 9,000 MACs, 95 % of one of them used"


def test_what_is_left_over() -> None:
    budget = Budget.parse("35%,macs=9K", 0.1)  # up to 385 and 9900
    assert budget.unused(TABLE, {"params": 308, "macs": 9900}) == pytest.approx({"params": 0.2, "macs": 0.0})
    of_none = Budget(params=0.0001)  # of a teacher with 1,000, nothing
    assert of_none.spelled_unused(TABLE, {"params": 0}) == "0.0% of params unused"


def test_a_share_is_of_the_original_network_also_where_the_space_is_narrowed_to_others() -> None:
    table = cost_table(WRN, SMALL)
    params = sum(
        weight.numel() for weight in WideResNetSpace.build(dict.fromkeys(table.labels, "S"), **SMALL).parameters()
    )
    narrow = table.narrowed({label: [name for name in table.candidates[block] if name != "S"]
                             for block, label in enumerate(table.labels)})  # fmt: skip
    assert not any("S" in names for names in narrow.candidates)
    for one in (table, narrow, narrow.narrowed({"block_00": ["B(2)"]})):
        assert Budget(params=0.5, at_most=True).bounds(one) == {"params": (0, params // 2)}
        assert Budget(macs=1.0).bounds(one) == Budget(macs=1.0).bounds(table)


@pytest.mark.parametrize(
    "text",
    ["", "K", "400 Q", "400,000", "-400K", "params=", "energy=4", "4e5", "400K,", "40%K", "400K+-", "400K+-3", "True"],
)
def test_what_is_no_budget_is_named(text: str) -> None:
    with pytest.raises(BudgetError, match=r"400000, 400K, 2.1M or 36% \(of the teacher\)") as caught:
        Budget.parse(text)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "a budget limits at least one resource, parameters or MACs say"),
        ({"params": 0}, "params=0 leaves room for nothing"),
        ({"macs": -3}, "macs=-3 leaves room for nothing"),
        ({"params": 1.5}, "params=1.5 is no share of the teacher"),
        ({"params": 0.0}, "params=0.0 is no share of the teacher"),
        ({"params": float("nan")}, "params=nan is no share of the teacher"),
        ({"params": 9, "tolerance": 0.0}, "the tolerance must lie between 0 and 1, as 0.025 for 2.5 %; it is 0.0"),
        ({"params": 9, "tolerance": "0.1"}, "the tolerance must lie between 0 and 1, as 0.025 for 2.5 %; it is '0.1'"),
        ({"params": 9, "at_most": "false"}, "at_most is true or false, not 'false'"),
        ({"params": 9, "tolerance": 2.5}, "it is 2.5"),
    ],
)
def test_figures_out_of_range(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(BudgetError, match=sentence):
        Budget(**arguments)


def test_an_import_path_that_leads_to_no_resource() -> None:
    with pytest.raises(
        BudgetError, match=r"the resource 'os:path' has no name; see nni_blockswap/cost/resources/base.py"
    ):
        Budget.parse("os:path=5")


class Unreadable:
    name, unit, suffixes = "memory", "bytes", {}  # type: ignore[var-annotated]


UNREADABLE = Unreadable()
ONE_THREAD = Latency(Conditions(threads=1))
NAMED = Latency(Conditions(threads=1), "one_thread")
CAPITAL = Latency(Conditions(threads=1), "EdgeTime")
SPACED = Latency(Conditions(threads=1), "edge time")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("UNREADABLE", "has no read; see nni_blockswap/cost/resources/base.py"),
        ("ONE_THREAD", "calls itself latency, as another one does; rename it"),
        ("SPACED", "calls itself 'edge time', and budgets name one by letters, digits and _; rename it"),
    ],
)
def test_what_cannot_be_a_resource(name: str, sentence: str) -> None:
    with pytest.raises(BudgetError, match=sentence):
        Budget.parse(f"{__name__}:{name}=5")
    assert RESOURCES["latency"] is LATENCY


def test_a_resource_with_a_name_of_its_own() -> None:
    assert Budget.parse(f"{__name__}:NAMED=5ms") == Budget(one_thread=5000)
    assert Budget.parse("nni_blockswap.cost.resources.latency:LATENCY=5ms") == Budget(latency=5000)
    capital = Budget.parse(f"{__name__}:CAPITAL=5ms")
    assert capital == Budget(EdgeTime=5000) == Budget.parse(str(capital)) == Budget.parse("edgetime=5ms")


def test_a_count_is_whole() -> None:
    with pytest.raises(BudgetError, match=r"1.2345K is 1234.5"):
        Budget.parse("1.2345K")
    with pytest.raises(BudgetError, match="limits params twice"):
        Budget.parse("400K,params=300K")
