"""The weights that are fitted to assembled students."""

import numpy as np
import pytest

from benchmarks.rank_causes import spelled
from benchmarks.rank_forms import fitted


def test_weights_are_those_that_the_errors_were_made_of() -> None:
    terms = np.random.default_rng(0).random((30, 4))
    assert fitted(terms, 7 + terms @ [3.0, 0.0, 1.0, 20.0]) == pytest.approx([3, 0, 1, 20])  # type: ignore[arg-type]


def test_a_block_that_would_count_against_its_error_counts_nothing() -> None:
    terms = np.random.default_rng(0).random((30, 2))
    assert fitted(terms, 50 + terms @ [3.0, -5.0])[1] == 0  # type: ignore[arg-type]


def test_the_order_of_the_errors_is_found_perfect() -> None:
    assert spelled([1.0, 2.0, 4.0, 9.0], [10.0, 11.0, 12.0, 13.0]).startswith("+1.00")
