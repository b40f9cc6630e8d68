"""Networks by the import path of what returns them."""

from functools import cache

import pytest
import torch
from torch import nn

from nni_blockswap import Architecture
from nni_blockswap.blocks.network import NetworkSpace
from nni_blockswap.errors import SpaceError
from nni_blockswap.spaces import NETWORK
from tests.blocks.networks import Sum, conv


@cache
def one() -> nn.Module:
    """The same network however often it is asked for, as a function that loads weights may keep it."""
    return Sum(conv(), nn.ReLU(), conv())


class Held(Sum):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__(conv(), nn.ReLU(), conv())
        self.numbers = (number for number in range(3))


def test_what_a_function_gives_each_time_is_left_as_it_is() -> None:
    """A student with S everywhere had the substitute of the one that was built before, and was the same object."""
    before = {name: value.clone() for name, value in one().state_dict().items()}
    arguments = {"model": f"{__name__}:one", "input_size": [3, 16, 16]}
    built = [Architecture.from_choices(NETWORK, [name], arguments).build() for name in ("B(2)", "S", "G(2)")]
    assert len(set(map(id, built))) == 3
    for network in (built[1], one()):
        assert list(network.state_dict()) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_that_cannot_be_copied_is_told() -> None:
    with pytest.raises(SpaceError, match=rf"{__name__}:Held gives a Held that cannot be copied: cannot pickle"):
        NetworkSpace(f"{__name__}:Held", None, (3, 16, 16))
