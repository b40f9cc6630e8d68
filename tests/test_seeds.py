"""Seeds that come of one, and those that no generator takes."""

import numpy as np
import pytest
import torch

from nni_blockswap.errors import ConfigError
from nni_blockswap.seeds import LARGEST, check_seed, derived_seed


def test_no_two_derived_seeds_are_alike() -> None:
    derived = {derived_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(derived) == 50 * 50


def test_torch_and_numpy_take_the_largest_seed_and_what_is_derived_from_it() -> None:
    check_seed(LARGEST, "--seed")
    for seed in (LARGEST, derived_seed(LARGEST, 10**6)):
        torch.Generator().manual_seed(seed)
        np.random.default_rng(seed)


@pytest.mark.parametrize("seed", [-1, LARGEST + 1, 2**63, 1.0, True, "0"])
def test_others_are_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match=f"^--seed must be a whole number from 0 to {LARGEST}, not {seed!r}"):
        check_seed(seed, "--seed")
