"""What substitutes take over: exact where the original is of their form, else as near as singular values allow."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from nni_blockswap.blocks.inheritance import (
    SHIFT,
    dense_convolutions,
    factorise_inputs,
    factorise_outputs,
    fit_affine,
    lifted,
    separate_inputs,
    settle_all,
)
from nni_blockswap.blocks.site import Site


def tail(matrix: Tensor, rank: int) -> float:
    """Sum of squares of the singular values behind the first ``rank``, by numpy."""
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    return float((values[rank:] ** 2).sum())


def composed(spatial: nn.Conv2d) -> Tensor:
    """A grouped convolution's kernel, dense: zeros between the groups."""
    weight, groups = spatial.weight.detach(), spatial.groups
    dense = weight.new_zeros(weight.shape[0], spatial.in_channels, *weight.shape[2:])
    rows, width = weight.shape[0] // groups, weight.shape[1]
    for group in range(groups):
        part = slice(group * rows, (group + 1) * rows)
        dense[part, group * width : (group + 1) * width] = weight[part]
    return dense


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_outputs_are_factorised_as_near_as_singular_values_allow(groups: int) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(16, 8, 3, 3)
    spatial, pointwise = nn.Conv2d(8, 8, 3, groups=groups), nn.Conv2d(8, 16, 1)
    factorise_outputs(spatial, pointwise, kernel)
    found = torch.einsum("nm,mcij->ncij", pointwise.weight.detach()[:, :, 0, 0], composed(spatial))
    width = 8 // groups
    wanted = sum(tail(part.flatten(1), width) for part in kernel.split(width, dim=1))  # type: ignore[no-untyped-call]
    assert (found - kernel).square().sum().item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_inputs_are_factorised_as_near_as_singular_values_allow(groups: int) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(8, 16, 3, 3)
    pointwise, spatial = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, groups=groups)
    factorise_inputs(pointwise, spatial, kernel)
    found = torch.einsum("nmij,mc->ncij", composed(spatial), pointwise.weight.detach()[:, :, 0, 0])
    wanted = sum(tail(part.transpose(0, 1).flatten(1), 8 // groups) for part in kernel.chunk(groups))
    assert (found - kernel).square().sum().item() == pytest.approx(wanted, rel=1e-4)


def test_more_channels_than_the_rank_are_silent() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(2, 16, 1, 1)  # of rank 2, where a group has eight channels between
    spatial, pointwise = nn.Conv2d(16, 16, 1, groups=2, bias=False), nn.Conv2d(16, 2, 1, bias=False)
    factorise_outputs(spatial, pointwise, kernel)
    x = torch.randn(3, 16, 5, 5)
    torch.testing.assert_close(pointwise(spatial(x)), nn.functional.conv2d(x, kernel), rtol=1e-4, atol=1e-4)


def linear(**others: object) -> Site:
    """A site without normalisation and activation: what stands there is a product of kernels."""
    return Site(8, 16, norm=lambda channels: nn.Identity(), activation=nn.Identity, **others)  # type: ignore[arg-type]


def test_a_grouped_original_is_taken_over_whole() -> None:
    torch.manual_seed(1)
    site = linear(stride=2, convolutions=1, bias=True)
    original = nn.Conv2d(8, 16, 3, 2, 1)
    grouped, pointwise = nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 16, 1)
    with torch.no_grad():
        original.weight.copy_(torch.einsum("nm,mcij->ncij", pointwise.weight[:, :, 0, 0], composed(grouped)))
    assert same(site, "G(4)", original)
    assert not same(site, "G(8)", original)


def test_both_convolutions_of_a_branch_are_taken_over() -> None:
    torch.manual_seed(2)
    site = Site(16, 16, stride=2, norm=lambda channels: nn.Identity(), activation=nn.Identity)
    assert same(site, "G(1)", site.build("S"))  # a pointwise convolution behind a dense one loses nothing


@pytest.mark.parametrize("inside", [8, 32])
def test_a_branch_of_another_width_inside_is_taken_over_whole(inside: int) -> None:
    torch.manual_seed(7)
    site = Site(16, 24, 2, norm=lambda channels: nn.Identity(), activation=nn.Identity, middle_channels=inside)
    original, grouped = site.build("S"), site.build("G(2)")
    with torch.no_grad():
        for number, one in enumerate(dense_convolutions(original)):
            spatial, pointwise = grouped[6 * number], grouped[6 * number + 3]
            one.weight.copy_(torch.einsum("nm,mcij->ncij", pointwise.weight[:, :, 0, 0], composed(spatial)))
    assert same(site, "G(2)", original)
    assert not same(site, "G(4)", original)
    down, spatial, up = nn.Conv2d(16, 6, 1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 24, 1)
    heard = slice(0, 12, 2) if inside > 12 else slice(0, 6)
    with torch.no_grad():  # six channels are heard, by the middle of the kernel, and read six mixtures of what enters
        inner = torch.einsum("nmij,mc->ncij", spatial.weight, down.weight[:, :, 0, 0])
        original.get_parameter("conv1.weight")[heard] = inner
        original.get_parameter("conv2.weight").zero_()[:, heard, 1, 1] = up.weight[:, :, 0, 0]
    assert same(site, "B(4)", original)


@pytest.mark.parametrize(
    ("site", "original"),
    [
        (Site(16, 16, middle_channels=4), nn.Sequential(nn.Conv2d(16, 4, 3), nn.Conv2d(4, 16, 3))),
        (Site(1, 32, convolutions=1), nn.Conv2d(1, 32, 3)),  # of rank 9
    ],
)
@pytest.mark.parametrize("name", ["B(2)", "BG(2,4)"])
def test_a_bottleneck_that_is_wider_than_what_it_could_take_over_begins_fresh(
    name: str, site: Site, original: nn.Module
) -> None:
    branch = site.build(name)
    before = {key: value.clone() for key, value in branch.state_dict().items()}
    assert not site.inherit(name, branch, original, torch.randn(2, site.in_channels, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in branch.state_dict().items())


@pytest.mark.parametrize("groups", [1, 4])
def test_a_bottleneck_is_taken_over_whole(groups: int) -> None:
    torch.manual_seed(3)
    site = linear(stride=2, convolutions=1, bias=True)
    down, spatial, up = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=groups), nn.Conv2d(8, 16, 1)
    with torch.no_grad():
        if groups > 1:  # the outputs' singular vectors are those of the groups, in their order
            up.weight.copy_(torch.eye(16, 8)[:, :, None, None])
            spatial.weight.mul_(torch.linspace(3, 1, 8)[:, None, None, None])
        inner = torch.einsum("nmij,mc->ncij", composed(spatial), down.weight[:, :, 0, 0])
        if groups > 1:
            rows = inner.flatten(1)
            inner = (torch.linspace(3, 1, 8)[:, None] * torch.linalg.qr(rows.T).Q.T).view_as(inner)
        original = nn.Conv2d(8, 16, 3, 2, 1)
        original.weight.copy_(torch.einsum("nm,mcij->ncij", up.weight[:, :, 0, 0], inner))
    assert same(site, "B(2)", original)
    assert not same(site, "B(4)", original)


def same(site: Site, name: str, original: nn.Module) -> bool:
    branch, x = site.build(name), torch.randn(2, site.in_channels, 8, 8)
    assert site.inherit(name, branch, original, x)
    return torch.allclose(branch(x), original(x), rtol=1e-3, atol=1e-4)


def test_what_nothing_non_linear_stood_for_is_lifted_and_its_scale_is_known() -> None:
    torch.manual_seed(4)
    x = torch.randn(64, 3, 8, 8) * torch.tensor([0.1, 1.0, 7.0])[:, None, None] + 5
    norm = nn.BatchNorm2d(3)
    passed, scale = lifted(norm, x)
    torch.testing.assert_close(passed.mean((0, 2, 3)), torch.full((3,), SHIFT), atol=1e-3, rtol=0)
    torch.testing.assert_close(scale, torch.tensor([0.1, 1.0, 7.0]), rtol=0.05, atol=0)
    assert (passed > 0).float().mean().item() == pytest.approx(0.5 * (1 + math.erf(SHIFT / 2**0.5)), abs=0.01)


def test_a_branch_keeps_its_middle_norm_and_the_channels_that_matter() -> None:
    torch.manual_seed(5)
    site = Site(8, 16)
    original = site.build("S")
    with torch.no_grad():
        original.bn1.weight.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
        original.bn1.bias.normal_()  # type: ignore[union-attr,operator]
        original.conv2.weight[:, ::2] = 0  # type: ignore[union-attr,index,operator]  # nobody listens to every other one
    grouped, bottleneck = site.build("G(2)"), site.build("B(2)")
    for name, branch in (("G(2)", grouped), ("B(2)", bottleneck)):
        site.inherit(name, branch, original, torch.randn(4, 8, 8, 8))
    assert torch.equal(grouped.bn2.weight, original.bn1.weight)
    assert torch.equal(bottleneck.bn2.weight, original.bn1.weight[1::2])  # type: ignore[index]
    assert torch.equal(bottleneck.bn2.bias, original.bn1.bias[1::2])  # type: ignore[index]


@pytest.mark.parametrize("name", ["G(2)", "B(2)", "W(1/2)", "MB(2)"])
def test_a_branch_that_nothing_is_taken_over_to_is_told_and_left_alone(name: str) -> None:
    site = Site(8, 16)
    excited = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 3))
    branch = site.build(name)
    before = {key: value.clone() for key, value in branch.state_dict().items()}
    assert not site.inherit(name, branch, excited, torch.randn(2, 8, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in branch.state_dict().items())


def test_fresh_weights_get_the_statistics_of_what_enters() -> None:
    torch.manual_seed(6)
    branch = Site(8, 16).build("MB(2)")
    x = 3 + 2 * torch.randn(8, 8, 8, 8)
    settle_all(branch, x)
    assert not branch.training
    assert not any(module._forward_pre_hooks for module in branch.modules())
    after = branch(x)
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.var((0, 2, 3)), torch.ones(16), atol=1e-3, rtol=0)


def test_statistics_of_vectors_are_settled_and_one_number_a_channel_has_none() -> None:
    branch, x = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2)), 3 + 2 * torch.randn(64, 2, 1, 1)
    settle_all(branch, x)
    mean = branch.get_buffer("1.running_mean").clone()
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(branch.get_buffer("1.running_var"), x.var((0, 2, 3)))
    settle_all(branch, x[:1])
    assert torch.equal(branch.get_buffer("1.running_mean"), mean)
    assert bool(branch.get_buffer("1.running_var").isfinite().all())


def test_statistics_of_what_is_called_by_keyword_are_settled_too() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)  # type: ignore[no-any-return]

    branch, x = Branch(), 3 + 2 * torch.randn(4, 2, 5, 5)
    settle_all(branch, x)
    torch.testing.assert_close(branch.norm.running_mean, x.mean((0, 2, 3)))


def separable(inner: int, outer: int, stride: int = 1) -> tuple[nn.Conv2d, nn.Sequential]:
    """A convolution, and the depthwise and the pointwise one that it is made of."""
    depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
    pointwise, whole = nn.Conv2d(inner, outer, 1), nn.Conv2d(inner, outer, 3, stride, 1)
    with torch.no_grad():
        whole.weight.copy_(pointwise.weight * depthwise.weight.transpose(0, 1))
        whole.bias.copy_(pointwise.bias)  # type: ignore[union-attr,arg-type]
    return whole, nn.Sequential(depthwise, pointwise)


@pytest.mark.parametrize("name", ["MB(1)", "MB(2)"])
def test_a_depthwise_separable_convolution_is_taken_over_whole(name: str) -> None:
    torch.manual_seed(8)
    original, parts = separable(8, 16, stride=2)
    x = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(original(x), parts(x), rtol=1e-4, atol=1e-5)
    assert same(linear(stride=2, convolutions=1, bias=True), name, original)


def test_as_many_products_as_a_kernel_has_numbers_are_any_convolution() -> None:
    torch.manual_seed(9)
    site, original = linear(convolutions=1, bias=True), nn.Conv2d(8, 16, 3, 1, 1)
    assert same(site, "MB(9)", original)
    assert not same(site, "MB(8)", original)


def test_inputs_are_separated_as_near_as_singular_values_allow() -> None:
    torch.manual_seed(10)
    kernel = torch.randn(16, 4, 3, 3)
    expand, depthwise, project = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 16, 1)
    separate_inputs(expand, depthwise, project, kernel)
    found = torch.einsum(
        "nm,mij,mc->ncij", project.weight[:, :, 0, 0], depthwise.weight[:, 0], expand.weight[:, :, 0, 0]
    )
    wanted = sum(tail(kernel[:, channel].flatten(1), 3) for channel in range(4))
    assert (found - kernel).square().sum().item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("inside", [8, 24])
def test_two_convolutions_of_separable_outputs_are_taken_over_whole(inside: int) -> None:
    torch.manual_seed(11)
    site = Site(
        8, 16, 2, norm=lambda channels: nn.Identity(), activation=nn.Identity, middle_channels=inside, bias=True
    )
    first, last = nn.Conv2d(8, inside, 3, 2, 1, bias=False), nn.Conv2d(inside, 16, 3, 1, 1)
    with torch.no_grad():
        first.weight.copy_(torch.randn(inside, 8, 1, 1) * torch.randn(inside, 1, 3, 3))
        last.weight.copy_(last.weight[:, :, 1:2, 1:2] * torch.eye(3)[1] * torch.eye(3)[:, 1:2])
        last.weight[:, 16:] = 0  # nobody listens to more than MB(2) has
    assert same(site, "MB(2)", nn.Sequential(first, last))


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("name", ["MB(1)", "MB(4)"])
def test_a_mobile_bottleneck_begins_no_worse_than_a_constant_and_than_fresh_weights(
    convolutions: int, name: str
) -> None:
    torch.manual_seed(12)
    site = Site(8, 16, stride=2, convolutions=convolutions)
    original, branch, fresh = site.build("S").eval(), site.build(name).eval(), site.build(name).eval()
    x = torch.randn(16, 8, 8, 8).relu()
    settle_all(original, x)
    settle_all(fresh, x)
    assert site.inherit(name, branch, original, x)
    target = original(x)
    errors = [(one(x) - target).square().mean((0, 2, 3)) / target.var((0, 2, 3)) for one in (branch, fresh)]
    assert errors[0].max() <= 1
    assert errors[0].mean() < errors[1].mean()


class Rectified(nn.BatchNorm2d):
    """A normalisation with its activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, Rectified])
def test_where_the_last_normalisation_cannot_be_fitted_a_mobile_bottleneck_is_left_alone(
    norm: Any, convolutions: int
) -> None:
    site = Site(8, 16, convolutions=convolutions, norm=norm)
    branch, original = site.build("MB(2)").eval(), site.build("S").eval()
    before = {key: value.clone() for key, value in branch.state_dict().items()}
    assert not site.inherit("MB(2)", branch, original, torch.randn(4, 8, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in branch.state_dict().items())


def test_a_normalisation_whose_statistics_are_frozen_is_fitted_too() -> None:
    torch.manual_seed(13)
    norm, x, wanted = FrozenBatchNorm2d(8), torch.randn(4, 8, 5, 5), torch.randn(4, 8, 5, 5)
    fit_affine(norm, x, 3 * x + 1 + 0.01 * wanted)
    assert (norm(x) - 3 * x - 1).abs().max() < 0.1
