"""Costs as proxies are what the architecture's table says."""

import pytest

from nni_blockswap.architecture import Architecture
from nni_blockswap.scoring.proxies import make_proxy
from tests.scoring.test_proxies import ARGUMENTS, SPACE, Anything, covering


@pytest.mark.parametrize("resource", ["params", "macs"])
def test_it_is_the_cost_of_the_architecture(super_network, batch, resource) -> None:
    for choices in covering(super_network)[::4]:
        super_network.select(choices)
        found = make_proxy(resource).measure(super_network, Anything(), batch)
        assert found.value == Architecture.from_choices(SPACE, choices, ARGUMENTS).costs[resource]
