"""What a search would have found, had it been stopped before its end."""

import json
from pathlib import Path

import pytest

from benchmarks.methods import SPACE, curves_of, reached, run, unseen
from nni_blockswap.searching import SearchSettings, make_method, table_of
from tests.conftest import SMALL


def settings(method: str, inits: int) -> SearchSettings:
    return SearchSettings(
        space=SPACE, space_args=SMALL, data="digits", data_options={"image_size": 8}, batch_size=8, device="cpu",
        processes=1, budgets=["60%"], at_most=True, method=method, samples=20, seed=3, inits=inits,
    )  # fmt: skip


@pytest.mark.parametrize(("method", "inits"), [("uniform", 1), ("evolution", 1), ("halving", 3)])
def test_a_curve_ends_with_what_the_search_found_and_only_changes_with_its_best(
    method: str, inits: int, tmp_path: Path
) -> None:
    asked, place = settings(method, inits), tmp_path / "place"
    result = run(asked, place)
    ((found,),) = curves_of([(("60%", method, 20), asked, place)]).values()
    counts = [count for count, _ in found]
    assert counts == sorted(counts)
    assert found[-1] == (result["evaluations"], result["unseen"])
    assert reached(found, counts[-1]) == result["unseen"]
    if method == "uniform":  # the slow way: the best of the first so many that are drawn
        table = table_of(asked)
        request = make_method(asked, table, asked.parsed()[0]).ask()
        assert request is not None
        journal = {
            one["choices"]: one["score"] for one in map(json.loads, (place / "scores.jsonl").read_text().splitlines())
        }
        drawn = [table.names(row) for row in request.rows]
        for count in range(1, 21):
            best = max(drawn[:count], key=lambda names: journal[" ".join(names.values())])
            assert reached(found, count) == unseen(asked, best, place)
