"""One small super-network and one batch for the tests of proxies."""

import copy

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import seeded
from search_spaces.wide_resnet import WideResNetSpace
from tests.scoring.test_proxies import ARGUMENTS


@pytest.fixture(scope="package")
def drawn() -> BlockSpace:
    with seeded(7):
        network = WideResNetSpace(**ARGUMENTS).double().train()
    for module in network.modules():  # scales and shifts that are not the initial ones must count too
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, torch.Generator().manual_seed(module.num_features))
            nn.init.normal_(module.bias, 0, 0.3, torch.Generator().manual_seed(module.num_features))
    return network


@pytest.fixture
def super_network(drawn: BlockSpace) -> BlockSpace:
    """One of each test's own: statistics that a test moved, or filled with NaN, are no other's."""
    return copy.deepcopy(drawn)


@pytest.fixture(scope="package")
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    images = torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (5,), generator=generator)
