import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nni_blockswap.architecture import Architecture
from nni_blockswap.conversation import Progress
from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices
from nni_blockswap.errors import BlockSwapError, ConfigError, ScoreError, StateError
from nni_blockswap.methods import METHODS, Request
from nni_blockswap.methods.base import Problem
from nni_blockswap.scoring.proxies import Score
from nni_blockswap.scoring.scorer import Scorer
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.searching import SearchSettings, make_method, score, search, table_of
from nni_blockswap.spaces import cost_table
from nni_blockswap.tasks import make_task
from tests.conftest import SMALL, WRN

SPACE_ARGS = {**SMALL, "image_size": 16}
SETTINGS = {
    "space": WRN,
    "space_args": SPACE_ARGS,
    "data": "digits",
    "budgets": ["30K"],
    "at_most": True,
    "samples": 12,
    "batch_size": 16,
    "device": "cpu",
}


def run(out: Path | None = None, **changes: object) -> list[list[tuple[str, str]]]:
    """(id, score to the bit) of each candidate, best first, for each budget."""
    rankings = search(SearchSettings(**{**SETTINGS, **changes}), out)  # type: ignore[arg-type]
    return [[(one.id, repr(one.score)) for one in ranking.architectures] for ranking in rankings]


def test_search_keeps_to_the_budget_and_writes_what_it_found(tmp_path: Path) -> None:
    (ranking,) = search(SearchSettings(**SETTINGS), tmp_path)  # type: ignore[arg-type]
    assert len({one.id for one in ranking.architectures}) == 12
    assert all(one.params <= 30_000 for one in ranking.architectures)
    assert all(
        one.params == Architecture.from_choices(WRN, one.choices, SPACE_ARGS).params for one in ranking.architectures
    )
    scores = [one.score for one in ranking.architectures]
    assert scores == sorted(scores, reverse=True)
    best = Architecture.load(tmp_path / "best.json")
    assert best == ranking.architectures[0]
    assert best.provenance["proxy"] == "fisher"
    assert math.isclose(sum(best.provenance["block_scores"]), best.score or 0, rel_tol=1e-12)
    assert len(list(csv.reader((tmp_path / "ranking.csv").open()))) == 13
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_combination_ranks_by_the_sum_of_places(tmp_path: Path) -> None:
    proxies = ("fisher", "params", "l2_norm")
    found = {}
    for name in proxies:
        (ranking,) = search(SearchSettings(**SETTINGS, proxy=name))  # type: ignore[arg-type]
        found[name] = {one.id: one.score or 0.0 for one in ranking.architectures}

    def places(of: Mapping[str, float]) -> dict[str, float]:  # 1 for the worst; equal scores share their mean place
        values = list(of.values())
        return {id_: sum(v < mine for v in values) + (values.count(mine) + 1) / 2 for id_, mine in of.items()}

    ranks = [places(found[name]) for name in proxies]
    (together,) = search(SearchSettings(**SETTINGS, proxy="fisher+params+l2_norm"), tmp_path)  # type: ignore[arg-type]
    for one in together.architectures:
        assert one.score == pytest.approx(sum(rank[one.id] for rank in ranks) / 12)
        assert one.provenance["scores"] == {name: found[name][one.id] for name in proxies}
        assert one.provenance["proxy"] == "fisher+params+l2_norm"
    scores = [one.score or 0.0 for one in together.architectures]
    assert scores == sorted(scores, reverse=True)
    assert Architecture.load(tmp_path / "best.json") == together.best
    assert {path.parent.name for path in tmp_path.glob("*/scores.jsonl")} == set(proxies)


def test_a_combination_goes_on_where_it_was_and_keeps_to_its_folder(tmp_path: Path, monkeypatch) -> None:
    settings = {**SETTINGS, "budgets": ["30K", "40K"], "samples": 4}
    first = search(SearchSettings(**settings, proxy="fisher+naswot"), tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "40K-at-most" / "best.json").exists()
    (tmp_path / "30K-at-most" / "ranking.csv").unlink()
    monkeypatch.setattr(Scorer, "scores", lambda *_: pytest.fail("all of it is scored"))
    assert search(SearchSettings(**settings, proxy="fisher+naswot"), tmp_path) == first  # type: ignore[arg-type]
    assert (tmp_path / "30K-at-most" / "ranking.csv").exists()
    with pytest.raises(StateError, match=r"proxy was fisher\+naswot, now params\+naswot"):
        search(SearchSettings(**settings, proxy="params+naswot"), tmp_path)  # type: ignore[arg-type]


def test_scores_of_given_architectures_can_be_combined(tmp_path: Path) -> None:
    settings = {name: SETTINGS[name] for name in ("space", "space_args", "data", "batch_size", "device")}
    networks = [
        Architecture.from_choices(WRN, choices, SPACE_ARGS).choices
        for choices in (["S"] * 3, ["G(2)"] * 3, ["B(2)"] * 3)
    ]
    found = score(ScoreSettings(**settings, proxy="params+macs"), networks, tmp_path)  # type: ignore[arg-type]
    assert [one.value for one in found] == [2.0, 4 / 3, 2 / 3]  # S is the dearest by both, B(2) the cheapest


def test_a_combination_needs_candidates_that_are_known_before(monkeypatch) -> None:
    monkeypatch.setitem(METHODS._loaded, "other", METHODS["uniform"])
    with pytest.raises(ConfigError, match=r"'fisher\+macs' compares candidates that are all known before.*'other'"):
        search(SearchSettings(**SETTINGS, proxy="fisher+macs", method="other"))  # type: ignore[arg-type]


def test_same_seed_same_ranking_in_another_process_and_another_seed_another(tmp_path: Path) -> None:
    here = run(tmp_path / "here")
    program = (
        "import torch; torch.set_num_threads(1)\n"
        "from nni_blockswap.searching import SearchSettings, search\n"
        f"search(SearchSettings(**{SETTINGS!r}), {str(tmp_path / 'there')!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
    assert (tmp_path / "here/ranking.csv").read_bytes() == (tmp_path / "there/ranking.csv").read_bytes()
    assert run(seed=1) != here


def test_another_seed_draws_other_architectures() -> None:
    settings = [SearchSettings(**SETTINGS, seed=seed) for seed in (0, 0, 1)]  # type: ignore[arg-type]
    first, again, other = (
        make_method(one, table_of(one), one.parsed()[0]).ask().rows  # type: ignore[union-attr]
        for one in settings
    )
    assert first == again
    assert len({*first, *other}) > len(first)


def test_several_budgets_give_each_what_it_gets_alone(tmp_path: Path) -> None:
    together = run(tmp_path, budgets=["30K", "macs=50%"])
    assert together == run(budgets=["30K"]) + run(budgets=["macs=50%"])
    assert {path.name for path in tmp_path.iterdir()} >= {"30K-at-most", "macs-50pct-at-most"}
    table = cost_table(WRN, SPACE_ARGS)
    best = Architecture.load(tmp_path / "macs-50pct-at-most" / "best.json")
    assert best.macs <= table.total("macs", table.original()) // 2


def test_averages_over_draws_of_the_weights(tmp_path: Path) -> None:
    (ranking,) = search(SearchSettings(**SETTINGS, inits=3), tmp_path)  # type: ignore[arg-type]
    draws: dict[str, dict[int, float]] = {}
    for line in (tmp_path / "scores.jsonl").read_text().splitlines():
        record = json.loads(line)
        draws.setdefault(record["choices"], {})[record["init"]] = record["score"]
    assert len(draws) == 12
    (single,) = search(SearchSettings(**SETTINGS))  # type: ignore[arg-type]
    for averaged in ranking.architectures:
        scores = draws[" ".join(averaged.choices.values())]
        assert sorted(scores) == [0, 1, 2]
        assert len(set(scores.values())) == 3
        assert math.isclose(averaged.score or 0, sum(scores.values()) / 3, rel_tol=1e-12)
        assert scores[0] == next(one.score for one in single.architectures if one.id == averaged.id)


def test_a_draw_of_the_weights_that_is_at_hand_is_scored_first(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def start(self: Scorer, init: int) -> Callable[[Sequence[object]], Iterator[tuple[int, Score]]]:
        started.append(init)
        return lambda candidates: ((position, Score(1.0)) for position in range(len(candidates)))

    monkeypatch.setattr(Scorer, "_started", start)
    run(method="evolution", inits=3, samples=24)
    assert started == [0, 1, 2, 0, 1, 0, 2, 0, 1]  # four rounds


def test_what_is_scored_are_the_minibatches_that_were_asked_for(tmp_path: Path) -> None:
    run(tmp_path, augment=False, minibatches=2, batch_size=8, seed=5)
    digits = make_task("digits")
    expected = [digits.fingerprint(digits.minibatch(8, seed=5, index=index, augment=False)) for index in (0, 1)]
    assert json.loads((tmp_path / "search.json").read_text())["batch_fingerprint"] == "+".join(expected)


def scored_as(monkeypatch: pytest.MonkeyPatch, value: Callable[[Mapping[str, str]], float]) -> None:
    """Let ``value`` score."""

    def scores(self: Scorer, init: int, candidates: Sequence[Mapping[str, str]]) -> Iterator[tuple[int, Score]]:
        yield from ((position, Score(value(choices))) for position, choices in enumerate(candidates))

    monkeypatch.setattr(Scorer, "scores", scores)


def test_a_budget_without_a_finite_score_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value(choices: Mapping[str, str]) -> float:
        return 1.0 if Architecture.from_choices(WRN, choices, SPACE_ARGS).params > 20_000 else math.nan

    scored_as(monkeypatch, value)
    with pytest.raises(ScoreError, match="none of the 12 candidates at 20K-5% has a finite score"):
        run(tmp_path, budgets=["20K", "25K+-10%"], at_most=False)
    assert Architecture.load(tmp_path / "25K-10pct/best.json").score == 1.0
    assert {path.name for path in (tmp_path / "20K").iterdir()} == {"ranking.csv"}


def test_tensorboard_shows_one_search_however_often_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[float] = []

    def value(choices: Mapping[str, str]) -> float:
        if len(came) == 41:
            raise KeyboardInterrupt
        came.append(50.0 - abs(30 - len(came)))  # the best, 50, comes as the 31st
        return came[-1]

    scored_as(monkeypatch, value)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, samples=45)
    scored_as(monkeypatch, lambda choices: 0.0)
    seen: list[Progress] = []
    search(SearchSettings(**{**SETTINGS, "samples": 45}), tmp_path, seen.append)  # type: ignore[arg-type]
    assert [progress.best for progress in seen] == [50.0] * 4
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    points = [(event.step, event.value) for event in board.Scalars("search/best_score")]
    assert points == [(25, 44.0), (45, 50.0)]
    assert [(one.step, one.histogram_value.num) for one in board.Histograms("search/scores")] == [(25, 25), (45, 45)]


def test_a_ranking_of_another_budget_or_size_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("ranking.csv", "best.json", "scores.jsonl")}
    for changes, sentence in (
        ({"budgets": ["25K"]}, "budget was 30K, now 25K"),
        ({"at_most": False}, "budget was 30K, now 30K-5%"),
        ({"at_most": False, "tolerance": 0.1}, r"budget was 30K, now 30K\+-10%"),
        ({"samples": 5}, "samples was 12, now 5"),
        ({"inits": 2}, "inits was 1, now 2"),
        ({"candidates": {"block_00": ["S", "B(2)"]}}, "candidates was [0-9a-f]{8}, now [0-9a-f]{8}"),
    ):
        with pytest.raises(StateError, match=sentence):
            run(tmp_path, **changes)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_what_is_asked_for_is_used_up(tmp_path: Path) -> None:
    """Caps alone let in what costs far less; a library's exact sums need no floor."""
    settings = SearchSettings(**{**SETTINGS, "at_most": False, "samples": 200})  # type: ignore[arg-type]
    plain = [one.params for one in search(settings)[0]]
    below = [one.params for one in search(replace(settings, at_most=True))[0]]
    assert 28_500 <= min(plain) <= max(plain) <= 30_000
    assert sorted(below)[100] < 28_500 <= max(below) <= 30_000
    chosen = replace(settings, proxy="library", library=str(tmp_path))
    assert chosen.parsed() == [Budget(params=30_000, at_most=True)]
    assert replace(chosen, tolerance=0.1).parsed() == [Budget(params=30_000, tolerance=0.1)]


def test_a_budget_is_given_once() -> None:
    with pytest.raises(BlockSwapError, match="'30K' and '30000' are the same budget; give it once"):
        run(budgets=["30K", "20K", "30000"])


def test_a_narrowed_space_is_searched_alone() -> None:
    candidates = {"block_00": ["S", "B(2)"], "block_01": ["G(2)"], "block_02": ["B(2)", "B(4)", "G(N)"]}
    (ranking,) = search(SearchSettings(**SETTINGS, candidates=candidates))  # type: ignore[arg-type]
    for one in ranking.architectures:
        assert one.choices["block_01"] == "G(2)"
        assert one.choices["block_02"] in ("B(2)", "B(4)", "G(N)")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": 0}, "samples must be above 0, not 0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, not -1"),
        ({"budgets": []}, "budgets is a list of at least one budget"),
        ({"budgets": ["1K"]}, "parameters reach from 8,362 to 78,138 in this space"),
        ({"proxy": "guess"}, "there is no proxy 'guess'; choose from fisher"),
        ({"device": "abacus"}, "the device 'abacus' cannot be used"),
        ({"precision": "int3"}, "there is no precision 'int3'; choose from auto, float32"),
        ({"data": "mnist"}, "there is no data set 'mnist'"),
        ({"data_options": {"image_size": "x"}}, "the data set 'digits' cannot take the options image_size=x"),
        ({"space_args": {**SPACE_ARGS, "image_size": 32}}, "images of 1x32x32 and digits has 1x16x16"),
        ({"space_args": {**SPACE_ARGS, "num_classes": 5}}, "digits has 10 classes and the network 5"),
    ],
)
def test_bad_settings_get_one_sentence_and_leave_nothing(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(BlockSwapError, match=sentence):
        run(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_settings_are_plain(tmp_path: Path) -> None:
    run(tmp_path)
    identity = json.loads((tmp_path / "search.json").read_text())
    assert identity["space_args"]["num_classes"] == 10
    assert identity["versions"].keys() == {"nni_blockswap", "torch"}


class Idle:
    """Asks about nothing."""

    def __init__(self, problem: Problem) -> None: ...

    def ask(self) -> Request | None: ...

    def tell(self, scores: Mapping[Indices, float]) -> None: ...


def test_a_method_that_asks_about_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tests\.test_searching:Idle' asked for the full score of no architecture"):
        run(tmp_path, method=f"{__name__}:Idle")
    assert not (tmp_path / "ranking.csv").exists()
