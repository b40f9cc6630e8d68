"""ZiCo weight by weight, and how a batch is split."""

import math

import pytest
import torch

from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.scoring.proxies.zico import split
from tests.scoring.test_proxies import Anything, covering, frozen_copy, plain_forward, plain_loss


def layers_of(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
    network.zero_grad()
    plain_loss(plain_forward(network, images)[0], labels).backward()
    return [weight.grad.flatten().tolist() for weight in network.parameters() if weight.ndim > 1]


@pytest.mark.parametrize("row", [0, 5, 9])
def test_zico_is_the_logarithm_of_mean_over_deviation(super_network, batch, row) -> None:
    choices = covering(super_network)[row]
    network = frozen_copy(super_network, choices)
    images, labels = torch.cat([batch[0], batch[0].flip(3)])[:9], torch.cat([batch[1], batch[1]])[:9]
    parts = [layers_of(network, images[n : n + 2], labels[n : n + 2]) for n in (0, 2, 4, 6)]  # the ninth is left over
    expected = 0.0
    for layer in zip(*parts, strict=True):
        total = 0.0
        for gradients in zip(*layer, strict=True):
            mean = sum(gradients) / 4
            deviation = (sum((g - mean) ** 2 for g in gradients) / 4) ** 0.5
            if deviation:
                total += sum(abs(g) for g in gradients) / 4 / deviation
        expected += math.log(total)
    super_network.requires_grad_(True).select(choices)
    found = make_proxy("zico").measure(super_network, Anything(), (images, labels))
    assert found.value == pytest.approx(expected, rel=1e-7)


def test_detectors_batches_of_lists_are_split_alike() -> None:
    assert list(split((["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5]), 2)) == [(["a", "b"], [1, 2]), (["c", "d"], [3, 4])]


def test_fewer_images_than_parts_are_refused(super_network, batch) -> None:
    with pytest.raises(ConfigError, match="'zico' needs a batch of at least 4 images, not 3"):
        make_proxy("zico").measure(super_network, Anything(), (batch[0][:3], batch[1][:3]))
