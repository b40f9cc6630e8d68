"""A super-network's layers in their fast forms: what they compute stays the same, compiled or not."""

import math
import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_blockswap.scoring.engines import cpu_layers
from nni_blockswap.scoring.engines.chain import FisherChain
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.tasks.classification import Classification
from tests.scoring.engines.test_chain import SPACES, WRN, batch, covering, super_network


@pytest.fixture(params=["compiled", "PyTorch's"])
def is_compiled(request: pytest.FixtureRequest) -> bool:
    """Whether BN is compiled for this machine, or runs in PyTorch's kernels as where there is no compiler."""
    if request.param == "compiled" and shutil.which("cc") is None:
        pytest.skip("needs a C compiler: there is no cc")
    return bool(request.param == "compiled")


@SPACES
def test_cpu_layers_keep_every_substitutes_score(space) -> None:
    network, data = super_network(space, torch.float64), batch(space, torch.float64)
    prepared = super_network(space, torch.float64)
    cpu_layers.prepare(prepared, bf16=False)
    chain = FisherChain(prepared, [data])
    for choices in covering(network):
        network.select(choices)
        plain = make_proxy("fisher").measure(network, Classification(), data)
        assert chain.measure(choices).blocks == pytest.approx(plain.blocks, rel=1e-9), (
            choices
        )  # as above, and wider sums


@SPACES
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_rounding_of_the_fast_way(space, precision: str, is_compiled: bool) -> None:
    # A rounding of 6e-8 (bfloat16: 4e-3) in each of up to 70 layers, each of which divides by the deviation of a small
    # sample, down to 8 values in this ResNet. That rankings stand it is shown in benchmarks/results/precision.md.
    tolerance = {"float32": 1e-2, "bf16": 0.6}[precision]
    network, data = super_network(space, torch.float64), batch(space, torch.float32)
    draw = partial(super_network, space, torch.float32)
    measure = cpu_layers.start(draw, [data], precision, False, is_compiled)
    rounded = {name: value.double() for name, value in draw().state_dict().items()}
    network.load_state_dict(rounded)
    ratios = []
    for choices in covering(network):
        network.select(choices)
        plain = make_proxy("fisher").measure(network, Classification(), (data[0].double(), data[1]))
        ratios.append(measure(choices).value / plain.value)
    assert ratios == pytest.approx([1.0] * len(ratios), rel=tolerance)


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


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7, 4), (64, 3, 1, 1), (2, 40, 3, 9)])
def test_batch_norm_equals_pytorchs(relu: bool, shape: tuple[int, int, int, int], is_compiled: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(shape[1])
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.zeros_(norm.weight[:1])
    x = (3 + 2 * torch.randn(shape)).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    expected_x = x.double().requires_grad_()
    expected = F.batch_norm(expected_x, None, None, norm.weight.double(), norm.bias.double(), training=True)
    expected = expected.relu() if relu else expected
    expected.backward(gradient.double())
    x.requires_grad_()
    norm.requires_grad_(False)
    out = cpu_layers.BatchNorm(norm, relu, is_compiled)(x)
    out.backward(gradient)
    assert torch.allclose(out.double(), expected, atol=2e-6)
    assert torch.allclose(x.grad.double(), expected_x.grad, atol=2e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_in_bfloat16(relu: bool, is_compiled: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(10).requires_grad_(False)
    nn.init.normal_(norm.bias)
    x, gradient = (torch.randn(16, 10, 6, 6).bfloat16() for _ in range(2))  # not in channels_last
    expected_x = x.double().requires_grad_()
    expected = F.batch_norm(expected_x, None, None, norm.weight.double(), norm.bias.double(), training=True)
    expected = expected.relu() if relu else expected
    expected.backward(gradient.double())
    x.requires_grad_()
    out = cpu_layers.BatchNorm(norm, relu, is_compiled)(x)
    out.backward(gradient)
    assert out.dtype == x.grad.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: each result is rounded once, by up to 2^-9 of its size.
    assert torch.allclose(out.double(), expected, rtol=2**-8, atol=1e-5)
    assert torch.allclose(x.grad.double(), expected_x.grad, rtol=2**-8, atol=1e-5)


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
        partial(super_network, WRN, torch.float32), [(images, labels)], precision, False, is_compiled
    )
    assert math.isnan(measure(covering(super_network(WRN, torch.float32))[0]).value)


def test_statistics_are_exact_where_a_plain_sum_in_float32_is_not() -> None:
    x = (100 + torch.randn(256, 1, 32, 32, generator=torch.Generator().manual_seed(0))).to(torch.float32)
    mean, variance = cpu_layers.statistics(x.contiguous(memory_format=torch.channels_last))
    assert mean.item() == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert variance.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-4)
