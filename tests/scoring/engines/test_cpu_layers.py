"""A super-network's layers in their fast forms: what they compute stays the same, compiled or not."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.scoring.engines import cpu_layers
from nni_blockswap.scoring.engines.chain import FisherChain
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.tasks.classification import Classification
from tests.scoring.engines.test_chain import FISHER, RESNET, SPACES, WRN, batch, covering, super_network


@pytest.fixture(params=["compiled", "PyTorch's"])
def is_compiled(request: pytest.FixtureRequest) -> bool:
    """Whether BN is compiled for this machine, or runs in PyTorch's kernels as where there is no compiler."""
    if request.param == "compiled":
        request.getfixturevalue("c_compiler")
    return bool(request.param == "compiled")


@SPACES
def test_cpu_layers_keep_every_substitutes_score(space) -> None:
    network, data = super_network(space, torch.float64), batch(space, torch.float64)
    prepared = super_network(space, torch.float64)
    cpu_layers.prepare(prepared, bf16=False)
    chain = FisherChain(prepared, Classification(), [data])
    for choices in covering(network):
        network.select(choices)
        plain = make_proxy("fisher").measure(network, Classification(), data)
        assert chain.measure(choices).blocks == pytest.approx(plain.blocks, rel=1e-9), choices  # sums over wider groups


def open_or_shut(space) -> BlockSpace:
    """A super-network in which no rounding flips a ReLU: BN shifts all that a channel holds to one side of 0.

    Three channels of four pass whole, the fourth not at all. Where a value lies within rounding of 0 it is luck whether
    its gradient passes, and with few values in a channel that moves a score by percents.
    """
    network = super_network(space, torch.float32)
    with seeded(6):
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.bias.copy_(7 * norm.weight)  # values lie up to 6 deviations from the mean
            norm.bias[3::4] *= -1
    return network


@pytest.fixture(scope="module", params=[WRN, RESNET], ids=["wrn", "resnet"])
def in_float64(request: pytest.FixtureRequest):
    """A space, a minibatch, and what the plain way gives in float64 for ``covering``."""
    space = request.param
    images, labels = batch(space, torch.float32, count=32)
    network = open_or_shut(space).double()
    nearest = []
    for relu in (module for module in network.modules() if isinstance(module, nn.ReLU)):
        relu.register_forward_pre_hook(lambda module, inputs: nearest.append(inputs[0].abs().min().item()))
    expected = []
    for choices in covering(network):
        network.select(choices)
        expected.append(make_proxy("fisher").measure(network, Classification(), (images.double(), labels)).blocks)
    assert min(nearest) > 0.1  # wider than any rounding
    return space, (images, labels), expected


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-4), ("bf16", 0.3)])
def test_rounding_of_the_fast_way(in_float64, precision: str, tolerance: float, is_compiled: bool) -> None:
    # A rounding of 6e-8 (bfloat16: 4e-3) in each of up to 70 layers, each of which divides by the deviation of a sample
    # of 32 values or more. That rankings stand it, flipped ReLUs included, is shown in benchmarks/results/precision.md.
    space, data, expected = in_float64
    measure = cpu_layers.start(partial(open_or_shut, space), FISHER, [data], precision, False, is_compiled)
    for choices, blocks in zip(covering(super_network(space, torch.float32)), expected, strict=True):
        assert measure(choices).blocks == pytest.approx(blocks, rel=tolerance), choices


@pytest.mark.parametrize(
    ("channels", "groups", "stride"), [(16, 8, 1), (16, 4, 2), (32, 32, 2), (64, 16, 1), (8, 4, 1), (24, 12, 1)]
)
def test_wide_groups_compute_the_same(channels: int, groups: int, stride: int) -> None:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=groups, bias=False).double()
    x = torch.randn(2, channels, 6, 6, dtype=torch.float64)
    expected = conv(x)
    cpu_layers.widen_groups(conv, 8)
    assert conv.groups == channels // 8
    assert torch.allclose(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "out", "groups"), [(12, 12, 6), (16, 16, 2), (16, 16, 1), (16, 32, 8)])
def test_groups_that_cannot_be_widened_stay(channels: int, out: int, groups: int) -> None:
    conv = nn.Conv2d(channels, out, 3, groups=groups)
    weight = conv.weight
    cpu_layers.widen_groups(conv, 8)
    assert conv.groups == groups
    assert conv.weight is weight


def reference(norm: nn.BatchNorm2d, relu: bool, x: torch.Tensor, gradient: torch.Tensor):
    """BN, then ReLU if asked for, in float64: what comes out, and its gradient at ``x``.

    From ``gradient`` goes what a value within rounding of ReLU's kink would pass by luck.
    """
    x = x.double().requires_grad_()
    out = F.batch_norm(x, None, None, norm.weight.double(), norm.bias.double(), training=True, eps=norm.eps)
    if relu:
        gradient[out.abs() < 1e-5] = 0
        out = out.relu()
    return out, *torch.autograd.grad(out, x, gradient.double())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7, 4), (64, 3, 1, 1), (2, 40, 3, 9)])
def test_batch_norm_equals_pytorchs(relu: bool, shape: tuple[int, int, int, int], is_compiled: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(shape[1], eps=0.1).requires_grad_(False)
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.zeros_(norm.weight[:1])
    x = (3 + 2 * torch.randn(shape)).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    expected, expected_gradient = reference(norm, relu, x, gradient)
    out = cpu_layers.BatchNorm(norm, relu, is_compiled)(x.requires_grad_())
    out.backward(gradient)
    assert torch.allclose(out.double(), expected, atol=2e-6)
    assert torch.allclose(x.grad.double(), expected_gradient, atol=2e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_in_bfloat16(relu: bool, is_compiled: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(10, eps=0.1).requires_grad_(False)
    nn.init.normal_(norm.bias)
    x, gradient = (torch.randn(16, 10, 6, 6).bfloat16() for _ in range(2))  # not in channels_last
    expected, expected_gradient = reference(norm, relu, x, gradient)
    out = cpu_layers.BatchNorm(norm, relu, is_compiled)(x.requires_grad_())
    out.backward(gradient)
    assert out.dtype == x.grad.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: each result is rounded once, by up to 2^-9 of its size.
    assert torch.allclose(out.double(), expected, rtol=2**-8, atol=1e-5)
    assert torch.allclose(x.grad.double(), expected_gradient, rtol=2**-8, atol=1e-5)


def test_batch_norm_is_exact_where_a_plain_sum_in_float32_is_not(is_compiled: bool) -> None:
    x = 100 + torch.randn(256, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm2d(1).requires_grad_(False)
    out = cpu_layers.BatchNorm(norm, False, is_compiled)(x.contiguous(memory_format=torch.channels_last))
    expected = (x.double() - x.double().mean()) / (x.double().var(correction=0) + norm.eps).sqrt()
    # At 100 a value is a multiple of 8e-6; scale and shift are rounded alike.
    assert (out - expected).abs().max() < 4e-5


def test_relu_of_bfloat16_is_pytorchs() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]
    assert torch.equal(cpu_layers.relu_(numbers.clone()), numbers.relu())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("nan")])
def test_what_is_not_finite_shows_in_the_score(precision: str, value: float, is_compiled: bool) -> None:
    images, labels = batch(WRN, torch.float32)
    images[0, 0, 3, 3] = value
    measure = cpu_layers.start(
        partial(super_network, WRN, torch.float32), FISHER, [(images, labels)], precision, False, is_compiled
    )
    assert math.isnan(measure(covering(super_network(WRN, torch.float32))[0]).value)


def test_statistics_are_exact_where_a_plain_sum_in_float32_is_not() -> None:
    x = (100 + torch.randn(256, 1, 32, 32, generator=torch.Generator().manual_seed(0))).to(torch.float32)
    mean, variance = cpu_layers.statistics(x.contiguous(memory_format=torch.channels_last))
    assert mean.item() == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert variance.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-4)
