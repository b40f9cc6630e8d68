"""The DARTS cell: its count by closed form, and what it computes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.site import Site
from nni_blockswap.blocks.substitutes.darts import NormalCell
from nni_blockswap.errors import SpaceError
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.searching import score
from nni_blockswap.spaces import cost_table
from tests.conftest import SMALL, WRN

WRN_40_2 = [(16, 32, 1), *[(32, 32, 1)] * 5, (32, 64, 2), *[(64, 64, 1)] * 5, (64, 128, 2), *[(128, 128, 1)] * 5]
"""Widths and stride of its blocks."""


def closed_form(channels_in: int, channels_out: int, stride: int) -> int:
    c = channels_out // 4
    preprocess = 2 * (channels_in * c + 2 * c)
    pairs = 11 * (9 * c + c * c + 2 * c)  # five separable convolutions of two, one dilated
    return preprocess + pairs + (2 * (c * c + 2 * c) if stride == 2 else 0)


@pytest.mark.parametrize("site", sorted(set(WRN_40_2)))
def test_parameters(site: tuple[int, int, int]) -> None:
    assert sum(p.numel() for p in NormalCell(*site).parameters()) == closed_form(*site)


def test_a_whole_network_has_the_parameters_that_the_docstring_tells() -> None:
    stem, last = 27 * 16, 2 * 128 + 10 * 129
    shells = sum(2 * m + (m * n if m != n else 0) for m, n, _ in WRN_40_2)
    assert stem + last + shells + sum(closed_form(*site) for site in WRN_40_2) == 207_786
    architecture = Architecture.from_choices(WRN, ["D"] * 18, {"extra": ["D"]})
    assert architecture.params == 207_786
    assert sum(parameter.numel() for parameter in architecture.build().parameters()) == 207_786


def test_macs_are_those_of_its_convolutions() -> None:
    """On 16 x 16: two preprocessings to 4 channels, eleven pairs of a depthwise and a 1x1 convolution."""
    table = cost_table(WRN, {"depth": 10, "width": 1, "image_size": 16, "extra": ["D"]})
    indices = table.index(["D", "S", "S"])
    without = cost_table(WRN, {"depth": 10, "width": 1, "image_size": 16})
    standard = without.index(["S", "S", "S"])
    cell = 16 * 16 * (2 * 16 * 4 + 11 * (9 * 4 + 4 * 4))
    assert table.costs(indices)["macs"] - without.costs(standard)["macs"] == cell - 16 * 16 * 2 * 9 * 16 * 16


def test_it_is_offered_on_request_alone() -> None:
    assert all("D" not in names for names in cost_table(WRN, SMALL).candidates)
    assert all("D" in names for names in cost_table(WRN, {**SMALL, "extra": [" d "]}).candidates)


def test_architectures_with_cells_are_scored_as_any_other() -> None:
    settings = ScoreSettings(
        space=WRN, data="digits", space_args={**SMALL, "extra": ["D", "MB(2)"]}, data_options={"image_size": 8},
        batch_size=16, device="cpu",
    )  # fmt: skip
    mixed = Architecture.from_choices(WRN, ["D", "MB(2)", "D"], settings.space_args)
    (found,) = score(settings, [mixed.choices])
    assert len(found.blocks) == 3
    assert all(0 < block < float("inf") for block in found.blocks)


def batch_norm(x: Tensor, bn: nn.Module) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    scale, shift = (p.detach()[None, :, None, None] for p in bn.parameters())
    return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift


def depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """3x3, a shifted picture at a time."""
    height, width = x.shape[2:]
    padded = F.pad(x, [dilation] * 4)
    total = torch.zeros_like(x)
    for row in range(3):
        for column in range(3):
            shifted = padded[:, :, row * dilation :, column * dilation :][:, :, :height, :width]
            total += weight[None, :, 0, row, column, None, None] * shifted
    return total[:, :, ::stride, ::stride]


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nchw,dc->ndhw", x, weight[:, :, 0, 0])


def separable(x: Tensor, weights: list, stride: int, dilation: int = 1) -> Tensor:
    grouped, mixing, bn = weights
    return batch_norm(pointwise(depthwise(x.relu(), grouped.weight, stride, dilation), mixing.weight), bn)


def skip(x: Tensor, edge: nn.Module, stride: int) -> Tensor:
    if stride == 1:
        return x
    even, odd, bn = (module for module in edge.modules() if not list(module.children()) and list(module.parameters()))
    x = x.relu()
    halves = [pointwise(x[:, :, ::2, ::2], even.weight), pointwise(x[:, :, 1::2, 1::2], odd.weight)]
    return batch_norm(torch.cat(halves, 1), bn)


def slow(cell: NormalCell, x: Tensor, stride: int) -> Tensor:
    """The cell of DARTS's figure 4, written out: c_{k-2} and c_{k-1} are both x."""
    layers = [[m for m in e.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)] for e in cell.edges]
    before = [
        batch_norm(pointwise(x.relu(), layer[1].weight), layer[2]) for layer in (cell.preprocess0, cell.preprocess1)
    ]

    def sep(state: Tensor, edge: int) -> Tensor:
        return separable(separable(state, layers[edge][:3], stride), layers[edge][3:], 1)

    node0 = sep(before[0], 0) + sep(before[1], 1)
    node1 = sep(before[0], 2) + sep(before[1], 3)
    node2 = sep(before[1], 4) + skip(before[0], cell.edges[5], stride)
    node3 = skip(before[0], cell.edges[6], stride) + separable(node0, layers[7], 1, dilation=2)
    return torch.cat([node0, node1, node2, node3], 1)


@pytest.mark.parametrize(("channels_in", "channels_out", "stride"), [(8, 8, 1), (8, 16, 2), (4, 8, 1)])
def test_forward_equals_a_slow_computation(channels_in: int, channels_out: int, stride: int) -> None:
    torch.manual_seed(0)
    cell = NormalCell(channels_in, channels_out, stride).double()
    for parameter in cell.parameters():
        nn.init.normal_(parameter)  # BN's terms, too
    x = torch.randn(3, channels_in, 6, 6, dtype=torch.float64)
    given = x.clone()
    found = cell(x)
    assert found.shape == (3, channels_out, 6 // stride, 6 // stride)
    torch.testing.assert_close(found, slow(cell, given, stride), rtol=1e-9, atol=1e-9)
    assert torch.equal(x, given)  # two preprocessings read it, and the block's shortcut


def test_odd_maps_round_up_as_convolutions_do() -> None:
    assert NormalCell(8, 8, 2)(torch.randn(2, 8, 7, 5)).shape == (2, 8, 4, 3)


@pytest.mark.parametrize(
    ("site", "rule"),
    [
        (Site(10, 10), "4 does not divide 10"),
        (Site(8, 8, 3), "stride 1 or 2"),
        (Site(8, 8, convolutions=1), "residual"),
    ],
)
def test_where_it_does_not_fit(site: Site, rule: str) -> None:
    assert site.candidates(["S", "D"]) == ("S",)
    with pytest.raises(SpaceError, match=rule):
        site.canonical("D")
