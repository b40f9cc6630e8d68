"""Sums of ranks, counted by hand."""

import math

import pytest

from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies.combination import combined, parts


def test_ranks_are_summed_the_worst_first() -> None:
    scores = {"good": [1.0, 5.0, 3.0, 2.0], "bad": [7.0, 8.0, 1.0, 9.0]}
    # good: ranks 1 4 3 2; bad, where low is good: 7 -> 3, 8 -> 2, 1 -> 4, 9 -> 1
    assert combined(scores, {"good": True, "bad": False}) == [4 / 4, 6 / 4, 7 / 4, 3 / 4]


def test_equal_scores_share_their_mean_rank() -> None:
    assert combined({"a": [2, 2, 1, 3]}, {"a": True}) == [2.5 / 4, 2.5 / 4, 1 / 4, 4 / 4]


def test_units_and_scales_do_not_matter() -> None:
    a, b = [0.3, -2.0, 7.0], [5.0, 4.0, 6.0]
    stretched = {"a": [math.exp(one) * 1e9 for one in a], "b": [one * 1e-300 for one in b]}
    assert combined({"a": a, "b": b}, {"a": True, "b": True}) == combined(stretched, {"a": True, "b": True})


def test_a_candidate_without_a_finite_score_has_none_and_moves_nobody() -> None:
    scores = {"a": [1.0, math.nan, 3.0, 2.0], "b": [1.0, 5.0, math.inf, 0.0]}
    found = combined(scores, {"a": True, "b": True})
    assert math.isnan(found[1])
    assert math.isnan(found[2])
    assert (found[0], found[3]) == ((1 + 2) / 2, (2 + 1) / 2)


def test_no_candidates_and_no_finite_ones() -> None:
    assert combined({"a": [], "b": []}, {"a": True, "b": True}) == []
    assert all(math.isnan(one) for one in combined({"a": [math.nan, 1.0], "b": [1.0, math.inf]}, {"a": 1, "b": 1}))


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="'a': 2, 'b': 1"):
        combined({"a": [1.0, 2.0], "b": [1.0]}, {"a": True, "b": True})


def test_names_come_apart_at_the_plus() -> None:
    assert parts("fisher") == ("fisher",)
    assert parts("fisher + naswot+snip") == ("fisher", "naswot", "snip")
    for name, fault in {
        "fisher+magic": "no proxy 'magic'",
        "fisher+fisher": "a proxy twice",
        "+": "no proxy ''",
    }.items():
        with pytest.raises(ConfigError, match=fault):
            parts(name)
