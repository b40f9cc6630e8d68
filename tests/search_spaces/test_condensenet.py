"""CondenseNet: the published counts, what it computes, and that it is an architecture like any other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import SpaceError
from nni_blockswap.library.building import build
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.searching import SearchSettings, search
from nni_blockswap.studies.sensitivity import one_swap
from nni_blockswap.training.condensation import deploy, learned
from search_spaces.condensenet import CondenseNetSpace

SPACE = "search_spaces.condensenet:CondenseNetSpace"
TINY = {"stages": [2, 1], "growth": [4, 8], "in_channels": 1, "image_size": 8}


def closed_form(stages: list[int], growth: list[int], condensed: int) -> int:
    """Of 1x1 convolutions with 1/``condensed`` of their weights, 3x3 ones in four groups, BN, stem and classifier."""
    channels = 2 * growth[0]
    total = 27 * channels
    for layers, k in zip(stages, growth, strict=True):
        for _ in range(layers):
            total += 2 * channels + channels * 4 * k // condensed + 2 * 4 * k + 9 * 4 * k * k // 4
            channels += k
    return total + 2 * channels + 10 * (channels + 1)


@pytest.mark.parametrize(("deployed", "condensed", "published"), [(False, 1, 1_451_594), (True, 4, 520_202)])
def test_condensenet_86_has_the_published_parameters(deployed: bool, condensed: int, published: int) -> None:
    assert closed_form([14, 14, 14], [8, 16, 32], condensed) == published
    architecture = Architecture.from_choices(SPACE, [], {"deployed": deployed})
    assert architecture.params == published
    network = CondenseNetSpace(deployed=deployed)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


def test_condensenet_86_has_86_layers_on_its_longest_path() -> None:
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in CondenseNetSpace().modules()) == 86


def test_macs_are_those_of_the_deployed_network() -> None:
    pixels, expected, channels = 32 * 32, 27 * 16 * 32 * 32, 16
    for k in (8, 16, 32):
        for _ in range(14):
            expected += pixels * (channels * 4 * k // 4 + 9 * 4 * k * k // 4)
            channels += k
        pixels //= 4
    assert Architecture.from_choices(SPACE, [], {"deployed": True}).macs == expected + 10 * channels


def slow(network: CondenseNetSpace, x: Tensor) -> Tensor:
    """In evaluation, a layer at a time, from the weights alone."""

    def bn_relu(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        scaled = (x - bn.running_mean[:, None, None]) / (bn.running_var + bn.eps).sqrt()[:, None, None]
        return F.relu(scaled * bn.weight[:, None, None] + bn.bias[:, None, None])

    x = F.conv2d(x, network.conv.weight, padding=1)
    for index, stage in enumerate(network.stages):
        if index:
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        for layer in stage:
            weight = layer.reduce.conv.weight[:, :, 0, 0] * layer.reduce.mask
            narrow = bn_relu(torch.einsum("nchw,dc->ndhw", bn_relu(x, layer.reduce.bn), weight), layer.bn)
            parts = [
                F.conv2d(part, filters, padding=1)
                for part, filters in zip(narrow.chunk(4, 1), layer.conv.weight.chunk(4), strict=True)
            ]
            x = torch.cat([x, *parts], 1)
    return bn_relu(x, network.bn).mean((2, 3)) @ network.fc.weight.T + network.fc.bias


def condensed(seed: int = 0) -> CondenseNetSpace:
    torch.manual_seed(seed)
    network = CondenseNetSpace(**TINY).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(values.data)
    for convolution in learned(network):
        while convolution.condensations < 3:
            convolution.condense()
    return network.eval()


def test_forward_equals_a_slow_computation() -> None:
    network, images = condensed(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(images), slow(network, images), rtol=1e-9, atol=1e-9)


def test_the_trained_network_becomes_the_deployed_one_with_the_same_outputs() -> None:
    network, images = condensed(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    expected = network(images)
    deploy(network)
    architecture = Architecture.from_choices(SPACE, [], {**TINY, "deployed": True})
    built = architecture.build().double().eval()
    built.load_state_dict(network.state_dict())
    assert sum(parameter.numel() for parameter in network.parameters()) == architecture.params
    torch.testing.assert_close(built(images), expected)


@pytest.mark.parametrize(
    "swap",
    [
        lambda out, **given: search(SearchSettings(**given, budgets=["50%"]), out),
        lambda out, **given: one_swap(ScoreSettings(**given), "G(4)"),
        lambda out, **given: build(LibrarySettings(**given), out),
    ],
    ids=["search", "sensitivity", "library"],
)
def test_that_it_has_no_block_is_told_before_anything_is_written(swap: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="CondenseNetSpace has no block, so there is nothing to swap"):
        swap(tmp_path / "out", space=SPACE, space_args=TINY, data="digits", data_options={"image_size": 8})
    assert not (tmp_path / "out").exists()
