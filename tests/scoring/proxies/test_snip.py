"""SNIP against a plain backward pass."""

import pytest

from nni_blockswap.scoring.proxies import make_proxy
from tests.scoring.test_proxies import Anything, covering, frozen_copy, plain_forward, plain_loss


def test_snip_is_the_sum_of_weights_times_gradients(super_network, batch) -> None:
    for choices in covering(super_network)[::6]:
        network = frozen_copy(super_network, choices)
        plain_loss(plain_forward(network, batch[0])[0], batch[1]).backward()
        expected = 0.0
        for weight in network.parameters():
            if weight.ndim > 1:  # no scale, no shift, no bias
                pairs = zip(weight.flatten().tolist(), weight.grad.flatten().tolist(), strict=True)
                expected += sum(abs(w * g) for w, g in pairs)
        super_network.requires_grad_(True).select(choices)
        assert make_proxy("snip").measure(super_network, Anything(), batch).value == pytest.approx(expected, rel=1e-9)


def test_what_a_space_froze_has_no_part(super_network, batch) -> None:
    choices = covering(super_network)[0]
    super_network.requires_grad_(True).select(choices)
    whole = make_proxy("snip").measure(super_network, Anything(), batch).value
    super_network.conv.weight.requires_grad_(False)
    without = make_proxy("snip").measure(super_network, Anything(), batch).value
    network = frozen_copy(super_network, choices)
    plain_loss(plain_forward(network, batch[0])[0], batch[1]).backward()
    stem = float((network.conv.weight.detach() * network.conv.weight.grad).abs().sum())
    assert whole - without == pytest.approx(stem, rel=1e-9)
