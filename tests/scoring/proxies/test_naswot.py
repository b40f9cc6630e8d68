"""NASWOT against codes that are counted unit by unit."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.blocks.shells import PreActivationBlock
from nni_blockswap.scoring.proxies import make_proxy
from tests.scoring.test_proxies import Anything, conv, covering, frozen_copy, normalised


def codes(network: nn.Module, images: Tensor) -> list[list[bool]]:
    """For each image which of the rectified units are on, all of them in a row."""
    found: list[list[bool]] = [[] for _ in images]

    def rectified(x: Tensor) -> Tensor:
        for image, row in zip(x.flatten(1).tolist(), found, strict=True):
            row.extend(value > 0 for value in image)
        return x.clamp(min=0)

    x = conv(images, network.conv)
    for block in [module for module in network.modules() if isinstance(module, PreActivationBlock)]:
        activated = a = rectified(normalised(x, block.bn))
        for layer in block.branch:
            if isinstance(layer, nn.Conv2d):
                a = conv(a, layer)
            elif isinstance(layer, nn.BatchNorm2d):
                a = normalised(a, layer)
            else:
                a = rectified(a)
        x = a + (x if block.shortcut is None else conv(activated, block.shortcut))
    rectified(normalised(x, network.bn))
    return found


def log_determinant(rows: list[list[bool]]) -> float:
    kernel = [[sum(a == b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]
    return math.log(abs(np.linalg.det(np.array(kernel, dtype=np.float64))))


@pytest.mark.parametrize("row", [0, 5, 9])
def test_the_kernel_counts_the_units_that_agree(super_network, batch, row) -> None:
    choices = covering(super_network)[row]
    super_network.requires_grad_(False).select(choices)
    with torch.no_grad():
        expected = log_determinant(codes(frozen_copy(super_network, choices), batch[0]))
    found = make_proxy("naswot").measure(super_network, Anything(), batch)
    assert found.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "rectify",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), F.relu, torch.relu, torch.relu_, Tensor.relu,
     lambda x: x.relu_(), lambda x: F.relu(input=x, inplace=True), lambda x: F.leaky_relu(x, 0.1), nn.Hardswish()],
)  # fmt: skip
def test_a_rectifier_is_seen_however_it_is_called(rectify) -> None:
    # K = [[2, 1], [1, 2]] - twice what they share: codes 10 and 11 agree in one unit of two; det = 4 - 1.
    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return rectify(images.flatten(1) * 1)

    images = torch.tensor([[1.0, -1.0], [2.0, 3.0]]).view(2, 2, 1, 1)
    found = make_proxy("naswot").measure(Network(), Anything(), (images, torch.tensor([0, 1])))  # type: ignore[arg-type]
    assert found.value == pytest.approx(math.log(3))


def test_what_has_no_row_for_each_image_does_not_count() -> None:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            torch.relu(torch.ones(5, 1))  # five regions of two images, say
            return torch.relu(images.flatten(1))

    images = torch.tensor([[1.0, -1.0], [2.0, 3.0]]).view(2, 2, 1, 1)
    found = make_proxy("naswot").measure(Network(), Anything(), (images, torch.tensor([0, 1])))  # type: ignore[arg-type]
    assert found.value == pytest.approx(math.log(3))


def test_images_that_cannot_be_told_apart_give_no_finite_score(super_network, batch) -> None:
    images = torch.cat([batch[0][:1]] * 3)
    super_network.requires_grad_(False).select(covering(super_network)[0])
    assert make_proxy("naswot").measure(super_network, Anything(), (images, batch[1][:3])).value == -math.inf


def test_counts_are_exact_in_reduced_precision(super_network, batch) -> None:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.relu(images.flatten(1))

    images = torch.randn(3, 1, 40, 41, generator=torch.Generator().manual_seed(0))
    expected = log_determinant([[value > 0 for value in image] for image in images.flatten(1).tolist()])
    with torch.autocast("cpu", torch.bfloat16):  # which would round 1,640 units to 1,640 +- 4
        found = make_proxy("naswot").measure(Network(), Anything(), (images, torch.tensor([0, 1, 2])))  # type: ignore[arg-type]
    assert found.value == pytest.approx(expected, rel=1e-12)
