"""What holds for every method in ``METHODS``."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices, Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.methods import METHODS
from nni_blockswap.methods.base import Problem
from nni_blockswap.methods.sampler import Sampler
from nni_blockswap.searching import SearchSettings, search
from tests.methods.test_sampler import GAPPED, middle, random_table, within
from tests.test_searching import SETTINGS

Score = Callable[[Indices, int], float]

pytestmark = pytest.mark.parametrize("name", list(METHODS))


def problem(table: Table, **changes: object) -> Problem:
    budget = Budget(params=middle(table, "params", 0.6), macs=middle(table, "macs", 0.6), at_most=True)
    return replace(Problem(table, budget, samples=40, seed=3, inits=5), **changes)  # type: ignore[arg-type]


def score_of(table: Table, seed: int = 0) -> Score:
    """Nearly additive; each draw of the weights adds noise of its own, all at one place."""
    values = [np.random.default_rng(seed).exponential(size=len(names)) for names in table.candidates]

    def score(row: Indices, init: int) -> float:
        noise = np.random.default_rng([*row, init, 5]).normal(scale=0.1)
        return math.exp(sum(float(block[i]) for block, i in zip(values, row, strict=True)) / 3 + noise)

    return score


def converse(name: str, asked: Problem, score: Score) -> tuple[list[tuple[Indices, ...]], dict[Indices, float]]:
    """Every request's rows, and the full scores."""
    method = METHODS[name](asked)
    requests, full = [], {}
    while (request := method.ask()) is not None:
        inits = request.inits or asked.inits
        told = {row: sum(score(row, init) for init in range(inits)) / inits for row in request.rows}
        requests.append(request.rows)
        full |= told if inits == asked.inits else {}
        method.tell(told)
    return requests, full


@pytest.mark.parametrize("limits", ["params", "macs", "both", "bands", "caps"])
def test_all_that_is_asked_for_meets_the_budget_and_no_more_than_samples(name: str, limits: str) -> None:
    table = random_table(1)
    params, macs = f"params={middle(table, 'params', 0.5)}", f"macs={middle(table, 'macs', 0.5)}"
    both = f"{params},{macs}"
    text = {"params": params, "macs": macs, "bands": f"{both}+-15%"}.get(limits, both)
    asked = problem(table, budget=Budget.parse(text, at_most=limits == "caps"))
    feasible = within(table, asked.budget)
    requests, full = converse(name, asked, score_of(table))
    rows = {row for request in requests for row in request}
    assert rows <= feasible
    assert 0 < len(full) <= len(rows) <= asked.samples
    assert all(len(set(request)) == len(request) for request in requests)


def test_the_same_seed_and_scores_make_the_same_requests_and_another_seed_others(name: str) -> None:
    table = random_table(2)
    score = score_of(table)
    first, again = (converse(name, problem(table), score)[0] for _ in range(2))
    assert first == again
    assert converse(name, problem(table, seed=4), score)[0] != first


def test_where_fewer_meet_the_budget_it_ends(name: str) -> None:
    table = random_table(3)
    few = Budget(params=middle(table, "params", 0.02), at_most=True)
    asked = problem(table, budget=few, inits=1)
    feasible = within(table, asked.budget)
    assert 1 < len(feasible) < asked.samples
    _, full = converse(name, asked, score_of(table))
    assert set(full) <= feasible


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_very_few_samples(name: str, samples: int) -> None:
    table = random_table(3)
    requests, full = converse(name, problem(table, samples=samples), score_of(table))
    assert 1 <= len(full) <= len({row for rows in requests for row in rows}) <= samples


@pytest.mark.parametrize("text", ["999", "2K", "params=1090,macs=140", "1050+-2%", "params=1005,macs=104+-2%"])
def test_an_infeasible_budget_ends_in_the_samplers_sentence(name: str, text: str) -> None:
    budget = Budget.parse(text)
    with pytest.raises(BudgetError) as expected:
        Sampler(GAPPED, budget)
    with pytest.raises(BudgetError) as caught:
        METHODS[name](Problem(GAPPED, budget, samples=5, seed=0))
    assert str(caught.value) == str(expected.value)


def test_scores_that_are_no_numbers_do_no_harm(name: str) -> None:
    table = random_table(4)
    score = score_of(table)

    def broken(row: Indices, init: int) -> float:
        return (math.nan, math.inf, -math.inf)[row[0] % 3] if row[1] == 0 else score(row, init)

    _, full = converse(name, problem(table), broken)
    assert any(math.isfinite(value) for value in full.values())
    converse(name, problem(table), lambda row, init: math.nan)


def test_low_scores_are_sought_where_low_is_good(name: str) -> None:
    """The mirror image of a search for high ones."""
    table = random_table(5)
    score = score_of(table)
    high = converse(name, problem(table), lambda row, init: score(row, init) - 100)[0]
    low = converse(name, problem(table, higher_is_better=False), lambda row, init: 100 - score(row, init))[0]
    assert high == low


def test_a_search_that_was_killed_goes_on_and_ends_the_same(name: str, tmp_path: Path) -> None:
    settings = SearchSettings(**{**SETTINGS, "method": name, "samples": 16, "inits": 2})  # type: ignore[arg-type]
    (whole,) = search(settings, tmp_path / "whole")
    lines = (tmp_path / "whole/scores.jsonl").read_text().splitlines(keepends=True)
    part = tmp_path / "part"
    part.mkdir()
    (part / "search.json").write_bytes((tmp_path / "whole/search.json").read_bytes())
    (part / "scores.jsonl").write_text("".join(lines[: len(lines) * 3 // 4]))
    assert search(settings, part)[0].architectures == whole.architectures
    assert (part / "scores.jsonl").read_text().splitlines(keepends=True) == lines
    assert whole.best.provenance["method"] == name
