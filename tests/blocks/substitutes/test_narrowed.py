"""W(r): spelling, costs in closed form, and what it takes from the original."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from nni_blockswap import Architecture, swap_blocks
from nni_blockswap.blocks.inheritance import dense_convolutions, importance
from nni_blockswap.blocks.site import Site
from nni_blockswap.blocks.substitutes.narrowed import WIDTHS
from nni_blockswap.errors import SpaceError
from nni_blockswap.spaces import cost_table
from tests.blocks.networks import Sum, conv
from tests.conftest import SMALL, WRN

SPACE_ARGS = {**SMALL, "extra": list(WIDTHS)}


@pytest.mark.parametrize(
    ("written", "width", "canonical"),
    [
        ("W(1/2)", 64, "W(1/2)"), ("w( 32/64 )", 64, "W(1/2)"), ("W(3/8)", 32, "W(1/2)"), ("W(1/8)", 32, "W(1/4)"),
        ("W(1/8)", 16, "W(1/2)"), ("W(1)", 64, "S"), ("W(1/4)", 8, "S"), ("W(1/2)", 20, "W(2/5)"),
    ],
)  # fmt: skip
def test_widths_are_multiples_of_eight_and_have_one_spelling(written: str, width: int, canonical: str) -> None:
    site = Site(16, width)
    assert site.canonical(written) == site.canonical(canonical) == canonical
    assert "." not in canonical


def test_shares_are_of_the_width_inside() -> None:
    assert Site(64, 64, middle_channels=16).candidates(WIDTHS) == ("W(1/2)", "S")
    assert Site(64, 64, middle_channels=32).candidates(WIDTHS) == ("W(1/4)", "W(1/2)", "W(3/4)", "S")
    wide = Site(8, 8, middle_channels=32)
    assert [conv.weight.shape for conv in dense_convolutions(wide.build("W(1/4)"))] == [(8, 8, 3, 3)] * 2


@pytest.mark.parametrize("wrong", ["W(3/2)", "W(2)"])
def test_what_is_wider_than_the_original_is_refused(wrong: str) -> None:
    with pytest.raises(SpaceError, match="wider than the original"):
        Site(64, 64).canonical(wrong)


def test_an_inverted_residual_is_not_narrowed() -> None:
    mobile = nn.Sequential(conv(3), InvertedResidual(8, 8, 1, 6), InvertedResidual(8, 16, 2, 6), conv(16, 16))
    *inverted, alone = swap_blocks(mobile.eval(), torch.zeros(1, 3, 16, 16), extra=["W(1/2)"]).blocks()
    assert ["W(1/2)" in block.names for block in (*inverted, alone)] == [False, False, True]
    with pytest.raises(SpaceError, match=r"'W\(1/2\)' does not fit here: an inverted residual .*write MB\(e,k\)"):
        inverted[0].site.canonical("W(1/2)")


@pytest.mark.parametrize("wrong", ["W(0.5)", "W(0)", "W()", "W(1/0)"])
def test_other_spellings_are_no_substitutes(wrong: str) -> None:
    with pytest.raises(SpaceError, match=r"W\(r\), r a share"):
        Site(64, 64).canonical(wrong)


def test_the_papers_set_does_not_have_it_and_extra_offers_it() -> None:
    assert not any(name.startswith("W") for names in cost_table(WRN, SMALL).candidates for name in names)
    wide = cost_table(WRN, SPACE_ARGS)
    assert [[n for n in names if n.startswith("W")] for names in wide.candidates] == [
        ["W(1/2)"], ["W(1/4)", "W(1/2)", "W(3/4)"], list(WIDTHS)
    ]  # fmt: skip


def test_costs_in_closed_form_and_of_the_built_network() -> None:
    one = Architecture.from_choices(WRN, ["W(1/2)", "W(1/4)", "W(5/8)"], SPACE_ARGS)
    teacher = one.teacher()
    widths, sites = (8, 8, 40), ((16, 16, 8), (16, 32, 4), (32, 64, 2))
    params = sum(
        9 * m * (a + n) + 2 * m - (9 * n * (a + n) + 2 * n) for m, (a, n, _) in zip(widths, sites, strict=True)
    )
    macs = sum(9 * (m - n) * (a + n) * side**2 for m, (a, n, side) in zip(widths, sites, strict=True))
    assert (one.params - teacher.params, one.macs - teacher.macs) == (params, macs)
    network = one.build()
    assert one.params == sum(weight.numel() for weight in network.parameters())
    assert network.train()(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("dead", [[0, 3, 4, 5, 9, 10, 12, 13], list(range(8, 16))])
def test_channels_that_do_nothing_go_first_and_the_rest_computes_what_the_original_did(dead: list[int]) -> None:
    torch.manual_seed(0)
    site = Site(16, 16, stride=2)
    original = trained(site.build("S"))
    with torch.no_grad():
        original.conv2.weight[:, dead] = 0  # nobody listens to them
    branch = site.build("W(1/2)")
    site.inherit("W(1/2)", branch, original, torch.randn(1, 16, 8, 8))
    x = torch.randn(4, 16, 8, 8)
    torch.testing.assert_close(branch.eval()(x), original.eval()(x))


@pytest.mark.parametrize(
    "norm", [None, nn.BatchNorm2d(16), nn.BatchNorm2d(16, affine=False), nn.GroupNorm(2, 16)], ids=str
)
@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True)])
def test_a_network_narrowed_by_channels_that_do_nothing_is_the_same(
    norm: nn.Module | None, biases: tuple[bool, bool]
) -> None:
    torch.manual_seed(2)
    convs = conv(8, 16, bias=biases[0]), conv(16, 8, bias=biases[1])
    network = Sum(convs[0], *([] if norm is None else [copy.deepcopy(norm)]), nn.ReLU(), convs[1])
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_()
        convs[1].weight[:, :8] = 0  # nobody listens to the first half, one of the two groups
        network.train()(torch.randn(64, 3, 8, 8))
    (block,) = swap_blocks(network.eval(), torch.zeros(1, 3, 8, 8), extra=["W(1/2)"]).blocks()
    branch, original, x = block.candidate("W(1/2)").eval(), block.candidate("S"), torch.randn(4, 8, 8, 8)
    assert block.site.inherit("W(1/2)", branch, original, x)
    torch.testing.assert_close(branch(x), original(x), rtol=1e-5, atol=1e-4)
    halves = [9 * 8 * 8 * 2 + 8 * sum(biases), sum(weight.numel() for weight in norm.parameters()) // 2 if norm else 0]
    assert sum(weight.numel() for weight in branch.parameters()) == sum(halves)


def test_importance_is_the_size_of_what_passes_the_relu() -> None:
    """Against a million normal draws; by the closed form for gamma alone it is |gamma| / sqrt(2)."""
    norm = nn.BatchNorm2d(4)
    scale, shift = torch.tensor([1.0, -2.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, -1.0, 3.0])
    with torch.no_grad():
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)
    first, last = torch.randn(4, 3, 3, 3), torch.ones(1, 4, 1, 1)
    with torch.no_grad():
        found = importance(first, last, norm)
    draws = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0))
    assert found[0].item() == pytest.approx(0.5**0.5)
    torch.testing.assert_close(found, (scale * draws + shift).relu().square().mean(0).sqrt(), rtol=0.02, atol=0.005)
    with torch.no_grad():
        plain = importance(first, last, norm, rectified=False)
    torch.testing.assert_close(plain, (scale * draws + shift).square().mean(0).sqrt(), rtol=0.02, atol=0.005)
    torch.testing.assert_close(importance(first, last, None), first.flatten(1).norm(dim=1))


@pytest.mark.parametrize(("kernel", "bias"), [(3, True), (1, False)])
def test_a_convolution_alone_is_factorised_and_exact_where_its_rank_allows(kernel: int, bias: bool) -> None:
    torch.manual_seed(1)
    site = Site(24, 32, stride=2, kernel=kernel, convolutions=1, bias=bias)
    original = site.build("S")
    (conv,) = original
    with torch.no_grad():
        conv.weight.copy_((torch.randn(32, 8) @ torch.randn(8, 24 * kernel**2)).view_as(conv.weight))
    branch = site.build("W(1/4)")
    site.inherit("W(1/4)", branch, original, torch.randn(1, 24, 9, 9))
    x = torch.randn(2, 24, 9, 9)
    torch.testing.assert_close(branch(x), original(x), rtol=1e-3, atol=1e-3)
    assert sum(w.numel() for w in branch.parameters()) == 8 * (24 * kernel**2 + 32) + 32 * bias


def test_factors_that_save_nothing_do_not_fit() -> None:
    site = Site(32, 32, kernel=1, convolutions=1)
    assert site.candidates(WIDTHS) == ("W(1/4)", "S")  # two factors of half the width have N^2 weights, as S has


def test_two_shares_of_one_width_are_one_candidate() -> None:
    for one, other in itertools.combinations(Site(32, 32).candidates(WIDTHS), 2):
        first, second = (Site(32, 32).build(name) for name in (one, other))
        assert sum(w.numel() for w in first.parameters()) != sum(w.numel() for w in second.parameters())


def trained(branch: nn.Sequential) -> nn.Sequential:
    """As after a training: scale, shift and statistics of all kinds."""
    with torch.no_grad():
        branch.bn1.weight.uniform_(0.5, 2)
        branch.bn1.bias.normal_()
    branch.train()(torch.randn(64, branch.conv1.in_channels, 8, 8))
    return branch
