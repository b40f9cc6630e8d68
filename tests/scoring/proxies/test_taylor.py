"""Saliency of activations, product by product."""

import pytest

from nni_blockswap.scoring.proxies import make_proxy
from tests.scoring.test_proxies import Anything, covering, frozen_copy, plain_forward, plain_loss


@pytest.mark.parametrize("row", [0, 5, 9])
def test_products_are_summed_without_sign_and_divided_by_the_channels(super_network, batch, row) -> None:
    choices = covering(super_network)[row]
    logits, outputs = plain_forward(frozen_copy(super_network, choices), batch[0])
    plain_loss(logits, batch[1]).backward()
    expected = [
        sum(abs(a * g) for a, g in zip(output.flatten().tolist(), output.grad.flatten().tolist(), strict=True))
        / channels
        for output, channels in zip(outputs, [16, 16, 32, 32, 64, 64], strict=True)
    ]
    super_network.requires_grad_(False).select(choices)
    found = make_proxy("taylor").measure(super_network, Anything(), batch)
    assert found.blocks == pytest.approx(expected, rel=1e-9)
    assert found.value == pytest.approx(sum(expected), rel=1e-9)
