"""Summed norms of the layers' gradients against a plain backward pass."""

import pytest

from nni_blockswap.scoring.proxies import make_proxy
from tests.scoring.test_proxies import Anything, covering, frozen_copy, plain_forward, plain_loss


def test_norms_are_taken_layer_by_layer(super_network, batch) -> None:
    for choices in covering(super_network)[::6]:
        network = frozen_copy(super_network, choices)
        plain_loss(plain_forward(network, batch[0])[0], batch[1]).backward()
        layers = [weight.grad for weight in network.parameters() if weight.ndim > 1]
        expected = sum(sum(g**2 for g in layer.flatten().tolist()) ** 0.5 for layer in layers)
        super_network.requires_grad_(True).select(choices)
        found = make_proxy("grad_l2").measure(super_network, Anything(), batch)
        assert found.value == pytest.approx(expected, rel=1e-9)
