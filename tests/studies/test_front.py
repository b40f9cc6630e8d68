import csv
import math
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from scipy.stats import rankdata

from nni_blockswap.architecture import Architecture
from nni_blockswap.cli import main
from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.resources import RESOURCES
from nni_blockswap.cost.table import Column, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.files import write_json
from nni_blockswap.results.tables import write_csv
from nni_blockswap.searching import SearchSettings, table_of
from nni_blockswap.studies.comparison import Comparison, contestants
from nni_blockswap.studies.front import Front, _rows, draw_errors, front, nondominated, spaced
from nni_blockswap.studies.report import report
from tests.conftest import WRN
from tests.test_searching import SETTINGS, SPACE_ARGS


def scored(params: int, macs: int, score: float) -> Architecture:
    return Architecture("space", {}, {"a": f"{params} {macs} {score}"}, {"params": params, "macs": macs}, score)


def test_nobody_beats_what_is_on_the_front() -> None:
    cheap, middle, best = scored(1, 5, 1.0), scored(2, 4, 3.0), scored(9, 9, 4.0)
    beaten = [scored(2, 5, 3.0), scored(9, 9, 3.9), scored(3, 5, 2.9), scored(1, 5, 0.5)]
    twin = scored(2, 4, 3.0)
    assert nondominated([*beaten, best, middle, cheap, twin], higher_is_better=True) == [cheap, middle, twin, best]
    assert nondominated([cheap, middle, best], higher_is_better=False) == [cheap, middle]


@pytest.mark.parametrize(
    ("text", "points", "budgets"),
    [
        ("10%..60%", 6, ["10%", "20%", "30%", "40%", "50%", "60%"]),
        ("macs=1M..2M", 3, ["macs=1M", "macs=1.5M", "macs=2M"]),
        ("latency=2ms..5ms", 2, ["latency=2ms", "latency=5ms"]),
    ],
)
def test_budgets_are_evenly_spaced(text: str, points: int, budgets: list[str]) -> None:
    assert spaced(text, points) == budgets


@pytest.mark.parametrize(("text", "points"), [("10%", 3), ("60%..10%", 3), ("10%..400K", 3), ("10%..20%", 1)])
def test_what_is_no_range(text: str, points: int) -> None:
    with pytest.raises(BudgetError, match="no range"):
        spaced(text, points)


def test_one_run_finds_the_best_for_each_budget(tmp_path: Path) -> None:
    settings = SearchSettings(**{**SETTINGS, "budgets": ["20%", "40%", "60%"]})  # type: ignore[arg-type]
    found = front(settings, tmp_path)
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) >= len(found.everything)
    table = table_of(settings)
    best = -math.inf
    for label, one in found.chosen.items():
        assert one.params <= Budget.parse(label, at_most=True).bounds(table)["params"][1]
        assert one.score is not None
        assert one.score >= best  # what meets a budget meets a greater one
        best = one.score
        assert one in found.architectures
    assert found.teacher.choices == dict.fromkeys(table.labels, "S")
    assert set(found.single["B(2)"].choices.values()) == {"B(2)"}
    with (tmp_path / "front.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows[: len(found.architectures)]] == [one.id for one in found.architectures]
    assert {"teacher", "B(2) in every block"} <= {row["network"] for row in rows}
    assert {one.id for one in found.chosen.values()} <= {row["id"] for row in rows}
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_at_a_budget_is_in_the_table_even_where_a_cheaper_one_scores_better() -> None:
    """With budgets that are used up the best of a dearer one may be beaten."""
    cheap, dear, teacher = scored(1, 1, 3.0), scored(2, 2, 2.0), scored(9, 9, 1.0)
    found = Front((cheap,), {"20%": cheap, "40%": dear}, (cheap, dear), teacher, {}, "fisher")
    _, *rows = _rows(found)
    assert [(row[0], row[-1]) for row in rows] == [("20%", cheap.id), ("40%", dear.id), ("teacher", teacher.id)]


def test_a_front_by_two_proxies_ranks_all_that_was_scored_together(tmp_path: Path) -> None:
    settings = SearchSettings(**{**SETTINGS, "budgets": ["20%", "40%"], "proxy": "fisher+naswot"})  # type: ignore[arg-type]
    found = front(settings, tmp_path)
    everyone = [*found.everything, found.teacher, *found.single.values()]
    places = [rankdata([one.provenance["scores"][name] for one in everyone]) for name in ("fisher", "naswot")]
    assert [one.score for one in everyone] == pytest.approx(sum(places) / len(everyone))
    table = table_of(settings)
    for label, best in found.chosen.items():
        limit = Budget.parse(label, at_most=True).bounds(table)["params"][1]
        assert best.score == max(one.score or 0.0 for one in found.everything if one.params <= limit)


def test_the_ids_of_a_front_are_those_of_trials(tmp_path: Path) -> None:
    """However little of the space's arguments was given."""
    given = {name: value for name, value in SPACE_ARGS.items() if name != "width"}
    settings = SearchSettings(**{**SETTINGS, "space_args": given, "budgets": ["20%", "40%"]})  # type: ignore[arg-type]
    found = front(settings, tmp_path)
    for one in (found.teacher, *found.single.values(), *found.everything):
        assert one.id == Architecture.from_choices(one.space, one.choices, given).id


def test_an_experiment_trains_the_best_at_each_budget_of_a_range(tmp_path: Path) -> None:
    compared = Comparison.read({"methods": ["front"], "budgets": "20%..60%", "points": 3, "seeds": 1})
    assert compared.size(3) == 3
    settings = SearchSettings(**{**SETTINGS, "budgets": ["40%"]})  # type: ignore[arg-type]
    trials = contestants(compared, settings, tmp_path)
    alone = front(replace(settings, budgets=["20%", "40%", "60%"]), tmp_path / "alone")
    assert [(one["method"], one["variant"]) for one in trials] == [("front", label) for label in alone.chosen]
    assert [one["architecture_id"] for one in trials] == [one.id for one in alone.chosen.values()]
    assert (tmp_path / "front/front.csv").read_bytes() == (tmp_path / "alone/front.csv").read_bytes()


def test_the_report_sets_errors_beside_a_front(tmp_path: Path) -> None:
    here, there = (Architecture.from_choices(WRN, names, SPACE_ARGS) for names in (["S", "S", "B(2)"], ["B(2)"] * 3))
    experiment = tmp_path / "experiment"
    for name, accuracy in (("first", 0.9), ("second", 0.8)):
        here.save(experiment / name / "architecture.json")
        write_json(experiment / name / "result.json", {"accuracy": accuracy, "params": here.params, "macs": here.macs})
        write_json(experiment / name / "settings.json", {"seed": 0 if name == "first" else 1})
    lines = [("20%", 3.5, here.params, "S", here.id), ("30%", 4.5, there.params, "B(2)", there.id)]
    write_csv(experiment / "front.csv", [("network", "score", "params", "block_00", "id"), *lines])
    report([experiment], tmp_path / "report", latency_batch=None)
    rows = list(csv.reader((tmp_path / "report/front.csv").read_text().splitlines()))
    assert rows[0] == ["network", "score", "error", "params", "block_00", "id"]
    assert float(rows[1][2]) == pytest.approx(15)
    assert rows[2] == ["30%", "4.5", "", str(there.params), "B(2)", there.id]
    assert (tmp_path / "report/front.png").read_bytes().startswith(b"\x89PNG")
    for _ in range(2):  # the second time its own table is there, too
        report([experiment], experiment / "report", latency_batch=None)
        assert (experiment / "report/front.csv").read_text() == (tmp_path / "report/front.csv").read_text()
        assert not (experiment / "report/front_2.csv").exists()


def test_errors_are_drawn_against_each_cost_of_those_that_were_trained() -> None:
    head = ["network", "score", "error", "params", "latency", "block_00", "id"]
    figure = draw_errors([head, ["20%", 1, 7.5, "100", "12", "S", "a"], ["30%", 2, None, "200", "9", "S", "b"]], 5.0)
    assert [axes.get_xlabel() for axes in figure.axes] == ["parameters", "microseconds"]
    for axes, cost in zip(figure.axes, (100, 12), strict=True):
        assert axes.collections[0].get_offsets().tolist() == [[cost, 7.5]]
        assert list(axes.lines[0].get_ydata()) == [5.0, 5.0]
        assert [text.get_text() for text in axes.texts] == ["20%"]


class Tenths:
    """A resource that is measured: the teacher's blocks are quick."""

    name, unit, suffixes = "tenths", "tenths", MappingProxyType[str, int]({})

    def measure(self, build: object, counted: Table) -> Column:
        costs = tuple(np.array([1 if name == "S" else 3 for name in names]) for names in counted.candidates)
        return Column(self.unit, 5, costs, source={"when": "2026", "where": {}})


def test_a_front_is_one_over_further_resources_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESOURCES._loaded, "tenths", Tenths())
    settings = SearchSettings(**{**SETTINGS, "budgets": ["20%", "60%"], "resources": ["TENTHS"]})  # type: ignore[arg-type]
    found = front(settings, tmp_path)
    for one in (*found.everything, found.teacher):
        assert one.costs["tenths"] == 5 + sum(1 if name == "S" else 3 for name in one.choices.values())
    assert {"tenths", "latency"} & set(next(csv.reader((tmp_path / "front.csv").open()))) == {"tenths"}
    plain = [replace(one, costs={"params": one.params, "macs": one.macs}) for one in found.everything]
    fewer = {one.id for one in nondominated(plain, higher_is_better=True)}
    assert fewer < {one.id for one in found.architectures}  # quicker ones stay beside those that score better
    with pytest.raises(BudgetError, match=r"^'teeth' is no resource\. Resources are params, macs, latency"):
        table_of(replace(settings, resources=["teeth"]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["front", "--space", WRN, *(f"--space-arg={name}={value}" for name, value in SPACE_ARGS.items())]
    command += ["--data", "digits", "--samples", "6", "--batch-size", "8", "--device", "cpu", "--processes", "1"]
    assert main([*command, "--budgets", "20%..60%", "--points", "2", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")][2:] == [
        "20%", "60%", "teacher",
    ]  # fmt: skip
    assert main(["show", str(tmp_path / "20pct")]) == 0
    assert (tmp_path / "20pct/preferences.png").exists()
    assert main(["show", str(tmp_path / "20pct/best.json"), "--out", str(tmp_path / "best.svg")]) == 0
    assert "<svg" in (tmp_path / "best.svg").read_text()
    best = Architecture.load(tmp_path / "20pct/best.json")
    assert f"{best.params / best.teacher().params:.1%} of the teacher's params" in capsys.readouterr().out
    assert main(["show", str(tmp_path / "20pct/best.json"), "--out", str(tmp_path / "best.txt")]) == 2
    assert "a picture's name ends in .png or .svg" in capsys.readouterr().err
