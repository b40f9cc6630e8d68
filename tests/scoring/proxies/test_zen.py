"""Zen-score from its definition."""

import math

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import PreActivationBlock
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.scoring.proxies.zen import SEED, traced
from tests.scoring.test_proxies import Anything, conv, covering, frozen_copy, normalised


def features(network: nn.Module, images: Tensor) -> tuple[Tensor, list[float]]:
    """The map before the pooling, and the mean variance that each normalisation divides by."""
    variances = []

    def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        variances.append(float(((x - mean) ** 2).mean((0, 2, 3)).mean()))
        return normalised(x, layer)

    x = conv(images, network.conv)
    for block in [module for module in network.modules() if isinstance(module, PreActivationBlock)]:
        activated = a = norm(x, block.bn).clamp(min=0)
        for layer in block.branch:
            if isinstance(layer, nn.Conv2d):
                a = conv(a, layer)
            elif isinstance(layer, nn.BatchNorm2d):
                a = norm(a, layer)
            else:
                a = a.clamp(min=0)
        x = a + (x if block.shortcut is None else conv(activated, block.shortcut))
    return norm(x, network.bn).clamp(min=0), variances


@pytest.mark.parametrize("row", [0, 5, 9])
def test_zen_score_is_the_difference_and_what_normalisation_took(super_network, batch, row) -> None:
    choices = covering(super_network)[row]
    network = frozen_copy(super_network, choices).requires_grad_(False)
    for weight in network.parameters():
        if weight.ndim > 1:
            values = weight.flatten().tolist()
            mean = sum(values) / len(values)
            weight /= math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    x, e = torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    (plain, variances), (perturbed, _) = features(network, x), features(network, x + 0.01 * e)
    difference = sum((one - other).abs().sum().item() for one, other in zip(plain, perturbed, strict=True)) / 5
    expected = math.log(difference) + sum(math.log(math.sqrt(variance)) for variance in variances)
    super_network.requires_grad_(False).select(choices)
    found = make_proxy("zen").measure(super_network, Anything(), batch)
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_images_play_no_part_but_for_their_shape(super_network, batch) -> None:
    super_network.requires_grad_(False).select(covering(super_network)[1])
    one, other = (
        make_proxy("zen").measure(super_network, Anything(), (images, batch[1])) for images in (batch[0], -batch[0])
    )
    assert one == other


def test_a_normalisation_that_is_called_by_keyword_is_seen() -> None:
    norm = nn.BatchNorm2d(2)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with traced(norm) as trace:
        norm(input=x)
    torch.testing.assert_close(trace.variances, [x.var((0, 2, 3), correction=0).mean()])
