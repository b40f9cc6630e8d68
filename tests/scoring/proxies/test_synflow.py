"""Synaptic flow against what the outputs lose when a layer is taken away: no gradient, no library layer."""

import math

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import PreActivationBlock
from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies import make_proxy
from tests.scoring.test_proxies import Anything, conv, covering, frozen_copy


def flow(network: nn.Module) -> float:
    """Sum of the outputs for an image of ones; no normalisation, and of a ReLU nothing is left as all is positive."""
    x: Tensor = conv(torch.ones(1, 3, 8, 8, dtype=torch.float64), network.conv)
    for block in [module for module in network.modules() if isinstance(module, PreActivationBlock)]:
        a = x
        for layer in block.branch:
            a = conv(a, layer) if isinstance(layer, nn.Conv2d) else a
        x = a + (x if block.shortcut is None else conv(x, block.shortcut))
    return float((x.mean((2, 3)) @ network.fc.weight.T + network.fc.bias).sum())


@pytest.mark.parametrize("row", [0, 5, 9])
def test_synflow_is_what_each_layer_carries(super_network, batch, row) -> None:
    # R is linear in the weights of one layer, up to what does not pass it: sum_w w dR/dw = R - R(that layer all zero).
    choices = covering(super_network)[row]
    network = frozen_copy(super_network, choices).requires_grad_(False)
    for weight in network.parameters():
        weight.abs_()
    whole, expected = flow(network), 0.0
    for weight in [weight for weight in network.parameters() if weight.ndim > 1]:
        before = weight.clone()
        weight.zero_()
        expected += whole - flow(network)
        weight.copy_(before)
    super_network.select(choices)
    found = make_proxy("synflow").measure(super_network, Anything(), batch)
    assert found.value == pytest.approx(math.log(expected), rel=1e-10)


def test_nothing_of_the_network_is_changed(super_network, batch) -> None:
    super_network.float().requires_grad_(False).select(covering(super_network)[3])
    try:
        before = {name: value.clone() for name, value in super_network.state_dict().items()}
        rounded = make_proxy("synflow").measure(super_network, Anything(), (batch[0].float(), batch[1]))
        assert all(torch.equal(value, before[name]) for name, value in super_network.state_dict().items())
        assert not any("forward" in vars(module) for module in super_network.modules())
    finally:
        super_network.double()
    exact = make_proxy("synflow").measure(super_network, Anything(), batch)
    assert rounded == exact  # it calculates in float64 on whatever weights there are


def test_it_needs_a_classifier(super_network) -> None:
    class Boxes:
        name = "boxes"

    with pytest.raises(ConfigError, match="'synflow' needs a classification task; 'boxes' is none"):
        make_proxy("synflow").measure(super_network, Boxes(), None)  # type: ignore[arg-type]
