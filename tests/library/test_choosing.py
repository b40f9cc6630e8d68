"""The choice by a library, against a look at every architecture; and as the command line makes it."""

import csv
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from nni_blockswap import Architecture, SearchSettings, search
from nni_blockswap.cli import main
from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Column
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.library import choosing
from nni_blockswap.library.library import Library
from nni_blockswap.library.measuring import Error
from nni_blockswap.results.ranking import Ranking
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.spaces import cost_table
from nni_blockswap.studies.front import front
from nni_blockswap.studies.rank_study import Trained, rank_study
from nni_blockswap.training import checkpoints
from tests.conftest import WRN
from tests.library.conftest import SPACE_ARGS, copy_of


@pytest.mark.parametrize("proxy", ["library", "library_log"])
@pytest.mark.parametrize("budget", ["40%", "params=50%,macs=35%", "macs=60%+-5%"])
def test_the_optimum_equals_brute_force(library: Library, proxy: str, budget: str, tmp_path: Path) -> None:
    table = cost_table(WRN, SPACE_ARGS)
    bounds = Budget.parse(budget).capped().bounds(table)

    def value(names: tuple[str, ...]) -> float:
        errors = [library.errors[label][name].value for label, name in zip(table.labels, names, strict=True)]
        return sum(math.log(error + 0.01) if proxy == "library_log" else error for error in errors)

    rows = itertools.product(*(range(len(names)) for names in table.candidates))
    fitting = sorted(
        (value(tuple(table.names(row).values())), list(table.names(row).values()))
        for row in rows
        if all(low <= table.total(name, row) <= high for name, (low, high) in bounds.items())
    )
    settings = SearchSettings(
        space=WRN, space_args=SPACE_ARGS, data="digits", budgets=[budget], proxy=proxy, library=str(library.folder),
        samples=5,
    )  # fmt: skip
    (ranking,) = search(settings, tmp_path)
    assert [one.score for one in ranking.architectures] == pytest.approx([score for score, _ in fitting[:5]])
    assert list(ranking.best.choices.values()) in [names for score, names in fitting if score <= fitting[0][0] + 1e-9]
    assert search(settings, tmp_path)[0].best == ranking.best
    assert Architecture.load(tmp_path / "best.json").provenance["library_digest"] == library.digest


def test_the_command_needs_no_data_and_leaves_ranking_and_best(
    library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", "--space", WRN, "--proxy", "library", "--library", str(library.folder), "--out", str(tmp_path)]
    assert main([*command, "--budget", "35%", "50%"]) == 0  # the space's arguments are the library's
    assert main([*command, "--budget", "35%", "--method", "evolution"]) == 2
    assert main([*command, "--budget", "35%", "--space-arg", "depth=16"]) == 2
    assert "35%: best of 20" in capsys.readouterr().out
    for budget in ("35pct-at-most", "50pct-at-most"):
        with (tmp_path / budget / "ranking.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        best = Architecture.load(tmp_path / budget / "best.json")
        assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 21)]
        assert best.params <= int(budget[:2]) / 100 * best.teacher().params
        assert sum(best.provenance["block_scores"]) == pytest.approx(best.score)


def test_what_does_not_belong_together_is_refused(library: Library) -> None:
    plain = {"space": WRN, "space_args": SPACE_ARGS, "data": "digits", "budgets": ["40%"], "proxy": "library"}
    with pytest.raises(ConfigError, match="take a library"):
        SearchSettings(**plain)
    with pytest.raises(ConfigError, match="take a library"):
        SearchSettings(**{**plain, "proxy": "fisher"}, library=str(library.folder))
    with pytest.raises(StateError, match="is of search_spaces"):
        search(SearchSettings(**{**plain, "space_args": {"depth": 10}}, library=str(library.folder)))
    with pytest.raises(StateError, match="learned from digits, not from cifar10"):
        search(SearchSettings(**{**plain, "data": "cifar10"}, library=str(library.folder)))


def test_without_library_data_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--space", WRN, "--budget", "40%", "--out", str(tmp_path)]) == 2
    assert "--data NAME says" in capsys.readouterr().err


def test_a_rank_study_adds_up_the_errors_of_the_networks_that_were_trained(library: Library, tmp_path: Path) -> None:
    named = [["S", "S", "S"], ["W(1/2)", "S", "B(2)"], ["W(1/4)", "W(1/4)", "W(1/4)"], ["B(4)", "S", "G(2)"]]
    networks = [Architecture.from_choices(WRN, names, SPACE_ARGS) for names in named]
    by_hand = [sum(library.errors[label][name].value for label, name in one.choices.items()) for one in networks]
    trained = [Trained(one, 10 + error) for one, error in zip(networks, by_hand, strict=True)]
    settings = ScoreSettings(space=WRN, space_args=SPACE_ARGS, data="digits", data_options={"image_size": 8})
    plain, costs = rank_study(trained, settings, ["library", "params"], [1], tmp_path, library=library)
    assert plain.scores == pytest.approx(by_hand)
    assert plain.rho == pytest.approx(1)  # a low sum of errors promises a low error
    assert costs.rho < 0
    with pytest.raises(ConfigError, match="'library_log' adds up a library's errors; name its folder"):
        rank_study(trained, settings, ["library_log"], [1], tmp_path)
    with pytest.raises(StateError, match="learned from digits, not from cifar10"):
        rank_study(trained, replace(settings, data="cifar10"), ["library"], [1], tmp_path, library=library)


def test_a_librarys_sums_make_a_front_too(library: Library, tmp_path: Path) -> None:
    settings = SearchSettings(
        space=WRN, space_args=SPACE_ARGS, data="digits", budgets=["30%", "60%"], samples=3, proxy="library",
        library=str(library.folder),
    )  # fmt: skip
    found = front(settings, tmp_path)
    assert found.teacher.score == 0
    assert found.single["B(2)"].score == pytest.approx(sum(errors["B(2)"].value for errors in library.errors.values()))
    scores = [one.score for one in found.architectures]  # cheapest first in parameters, but MACs count as well
    assert min(scores) == found.chosen["60%"].score  # type: ignore[type-var]


def test_a_measured_cost_and_its_source_are_kept(library: Library, tmp_path: Path) -> None:
    counted = cost_table(WRN, SPACE_ARGS)
    source = {"when": "2026-01-31T00:00:00+00:00", "where": {"chip": "X"}}
    latency = Column("microseconds", 7, counted.column("macs").costs, source)
    table = replace(counted, columns={**counted.columns, "latency": latency})
    (found,) = choosing.choose(library, "library", table, [Budget.parse("latency=50%").capped()], 3, [tmp_path])
    read = Architecture.load(tmp_path / "best.json")
    assert read.costs["latency"] == found.best.costs["latency"] == latency.total(table.index(read.choices))
    assert read.provenance["measured"] == {"latency": source}
    assert [one.costs for one in Ranking.load(tmp_path)] == [one.costs for one in found]


def test_a_ranking_of_other_candidates_is_not_overwritten(library: Library, tmp_path: Path) -> None:
    settings = SearchSettings(
        space=WRN, space_args=SPACE_ARGS, data="digits", budgets=["40%"], samples=3, proxy="library",
        library=str(library.folder),
    )  # fmt: skip
    search(settings, tmp_path)
    before = (tmp_path / "ranking.csv").read_bytes()
    fewer = replace(settings, candidates={label: ["S", "G(4)", "B(2)"] for label in library.errors})
    with pytest.raises(StateError, match=r"holds another ranking \(candidates was \w{8}, now \w{8}\)"):
        search(fewer, tmp_path)
    assert (tmp_path / "ranking.csv").read_bytes() == before


def test_the_commands_offer_narrowed_blocks_by_themselves(tmp_path: Path) -> None:
    plain = {name: value for name, value in SPACE_ARGS.items() if name != "extra"}
    network = Architecture.from_choices(WRN, ["S"] * 3, plain).build()
    checkpoints.save(network.state_dict(), tmp_path / "weights.pt")
    space = ["--space", WRN, "--space-arg", *(f"{name}={json.dumps(value)}" for name, value in plain.items())]
    data = ["--data", "digits", "--data-option", "image_size=8", "--steps", "1", "--batch-size", "32"]
    taught = ["library", *space, "--teacher", str(tmp_path / "weights.pt"), *data, "--out", str(tmp_path / "lib")]
    assert main([*taught, "--held-out", "64"]) == 0
    assert "W(1/2)" in Library.load(tmp_path / "lib").errors["block_00"]
    chosen = ["search", "--space", WRN, "--proxy", "library", "--library", str(tmp_path / "lib"), "--budget", "35%"]
    assert main([*chosen, "--out", str(tmp_path / "chosen")]) == 0
    best = Architecture.load(tmp_path / "chosen" / "best.json")
    assert any(name.startswith("W(") for name in best.choices.values())


def test_a_library_that_was_moved_chooses_into_the_same_folder(library: Library, tmp_path: Path) -> None:
    settings = SearchSettings(
        space=WRN, space_args=SPACE_ARGS, data="digits", budgets=["40%"], samples=2, proxy="library",
        library=str(library.folder),
    )  # fmt: skip
    (before,) = search(settings, tmp_path / "out")
    moved = copy_of(library, tmp_path / "moved")
    (again,) = search(replace(settings, library=str(moved)), tmp_path / "out")
    assert [one.id for one in again] == [one.id for one in before]
    assert again.best.provenance["library"] == str(moved)


def test_an_error_that_is_no_number_is_told_and_can_be_left_out(library: Library) -> None:
    wrong = {**library.errors, "block_01": {**library.errors["block_01"], "B(2)": Error(math.nan, 0.0)}}
    diverged = replace(library, errors=wrong)
    table = cost_table(WRN, SPACE_ARGS)
    for proxy in choosing.PROXIES:
        with pytest.raises(
            StateError, match=r"the error of B\(2\) for block_01 is nan, by which nothing can be chosen"
        ):
            choosing.choose(diverged, proxy, table, [Budget.parse("40%").capped()], 1)
    without = table.narrowed({"block_01": [name for name in library.errors["block_01"] if name != "B(2)"]})
    assert len(choosing.choose(diverged, "library", without, [Budget.parse("40%").capped()], 1)) == 1


def test_images_of_another_size_are_told(library: Library) -> None:
    plain = {"space": WRN, "space_args": SPACE_ARGS, "data": "digits", "budgets": ["40%"], "proxy": "library"}
    plain |= {"library": str(library.folder), "samples": 1}
    with pytest.raises(StateError, match="learned from digits with image_size=8, not image_size=16; build one"):
        search(SearchSettings(**plain, data_options={"image_size": 16}))
    for same in ({"image_size": 8}, {"held_out": 90}, {}):
        search(SearchSettings(**plain, data_options=same))
    usual = replace(library, about={**library.about, "data_options": {}})  # 16, where nobody says
    usual.check_data("digits", {"image_size": 16})
    with pytest.raises(StateError, match="learned from digits with image_size=16, not image_size=8"):
        usual.check_data("digits", {"image_size": 8})


def test_nothing_is_imported_to_look_at_the_data_of_a_library(library: Library) -> None:
    about = {**library.about, "data": "nowhere_at_all:data", "data_options": {"image_size": 16}}
    own = replace(library, about=about)
    own.check_data("nowhere_at_all:data", {"image_size": 16})
    with pytest.raises(StateError, match="with image_size=16, not image_size=8"):
        own.check_data("nowhere_at_all:data", {"image_size": 8})
    replace(library, about={**about, "data_options": {}}).check_data("nowhere_at_all:data", {"image_size": 16})
