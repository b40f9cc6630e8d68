import csv
import math
from pathlib import Path

import pytest

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ScoreError, SpaceError, StateError
from nni_blockswap.results.ranking import Ranking, check_overwrites
from tests.conftest import SMALL, WRN

CHOICES = (["S", "S", "S"], ["G(2)", "S", "B(2)"], ["B(4)", "B(4)", "B(4)"], ["S", "S", "G(N)"], ["S", "B(2)", "S"])
SCORES = (1.5, math.nan, 2.5, math.inf, -0.5)


def scored(scores: tuple[float, ...] = SCORES) -> list[Architecture]:
    return [
        Architecture.from_choices(WRN, choices, SMALL).scored(score, {"proxy": "fisher", "budget": "50K"})
        for choices, score in zip(CHOICES, scores, strict=True)
    ]


def test_best_first_and_non_finite_last_whatever_the_direction() -> None:
    up = Ranking.of("50K", scored(), higher_is_better=True)
    down = Ranking.of("50K", scored(), higher_is_better=False)
    assert [one.score for one in up.architectures[:3]] == [2.5, 1.5, -0.5]
    assert [one.score for one in down.architectures[:3]] == [-0.5, 1.5, 2.5]
    for ranking in (up, down):
        assert not any(math.isfinite(one.score or 0) for one in ranking.architectures[3:])
        assert len(ranking.top(5)) == 3


def test_order_of_ties_does_not_depend_on_the_order_of_scoring() -> None:
    tied = scored((1.0,) * 5)
    one = Ranking.of("50K", tied, higher_is_better=True)
    two = Ranking.of("50K", tied[::-1], higher_is_better=True)
    assert one == two


def test_files(tmp_path: Path) -> None:
    ranking = Ranking.of("50K", scored(), higher_is_better=True)
    ranking.save(tmp_path)
    rows = list(csv.reader((tmp_path / "ranking.csv").open()))
    assert rows[0][:7] == ["rank", "score", "params", "macs", "block_00", "block_01", "block_02"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3", "4", "5"]
    assert [row[-1] for row in rows[1:]] == ["", "", "", "non-finite", "non-finite"]
    assert rows[1][4:7] == CHOICES[2]
    assert int(rows[1][2]) == Architecture.from_choices(WRN, CHOICES[2], SMALL).params
    assert Architecture.load(tmp_path / "best.json") == ranking.best
    again = Ranking.load(tmp_path)
    assert again.budget == "50K"
    assert [one.id for one in again.architectures] == [one.id for one in ranking.architectures]
    assert [repr(one.score) for one in again.architectures] == [repr(one.score) for one in ranking.architectures]


def test_a_ranking_without_a_finite_score_is_kept_and_has_no_best(tmp_path: Path) -> None:
    Ranking.of("50K", scored((math.nan,) * 5), higher_is_better=True).save(tmp_path)
    assert len((tmp_path / "ranking.csv").read_text().splitlines()) == 6
    assert not (tmp_path / "best.json").exists()


def test_a_ranking_is_replaced_only_by_one_of_the_same_extent(tmp_path: Path) -> None:
    check_overwrites([tmp_path], [{"budget": "40K"}])
    Ranking.of("50K", scored(), higher_is_better=True).save(tmp_path)
    check_overwrites([tmp_path], [{"budget": "50K"}])
    with pytest.raises(StateError, match=r"another ranking \(budget was 50K, now 40K\)"):
        check_overwrites([tmp_path], [{"budget": "40K"}])


def test_no_finite_score_at_all() -> None:
    with pytest.raises(ScoreError, match="none of the 5 candidates at 50K has a finite score"):
        _ = Ranking.of("50K", scored((math.nan,) * 5), higher_is_better=True).best


def test_what_is_no_ranking(tmp_path: Path) -> None:
    Ranking.of("50K", scored(), higher_is_better=True).save(tmp_path)
    (tmp_path / "ranking.csv").write_text("rank\n1\n")
    with pytest.raises(SpaceError, match="is not a ranking"):
        Ranking.load(tmp_path)
