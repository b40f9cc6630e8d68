import itertools
from functools import partial

import pytest
import torch
from torch import nn

from nni_blockswap.blocks.site import Site
from nni_blockswap.blocks.substitutes.paper import PAPER, PUBLISHED_EXTRA, convs
from nni_blockswap.cost.resources import RESOURCES
from nni_blockswap.errors import SpaceError
from tests.blocks.substitutes import closed_forms

SITES = [Site(16, 16), Site(32, 32), Site(128, 128), Site(16, 32), Site(64, 128, stride=2), Site(24, 48, 2, kernel=5)]


@pytest.mark.parametrize("n", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("k", [3, 5])
def test_convolution_weights_follow_appendix_a(n: int, k: int) -> None:
    site = Site(n, n, kernel=k)

    def weights(name: str) -> int:
        return sum(conv.weight.numel() for conv in site.build(name) if isinstance(conv, nn.Conv2d))

    assert weights("S") == 2 * k**2 * n**2
    for g in (2, 4, 8, 16):
        assert weights(f"G({g})") == 2 * (k**2 * n**2 // g + n**2)
        assert weights(f"BG(2,{g})") == 2 * n**2 // 2 + k**2 * (n // 2) ** 2 // g if n // 2 % g == 0 else True
    for b in (2, 4):
        assert weights(f"B({b})") == 2 * n**2 // b + k**2 * (n // b) ** 2


def test_candidate_counts_of_wrn_40_2() -> None:
    # from the paper's candidate set with duplicates gone: 16, 5 x 12, 17, 5 x 14, 18, 5 x 16
    sizes = {Site(16, 32): 16, Site(32, 32): 12, Site(32, 64, 2): 17, Site(64, 64): 14, Site(64, 128, 2): 18}
    sizes[Site(128, 128)] = 16
    for site, size in sizes.items():
        found = site.candidates(PAPER)
        assert len(found) == len(set(found)) == size
        assert found[0] == "S"


@pytest.mark.parametrize(
    ("spelling", "site", "expected"),
    [
        ("G(N/16)", Site(128, 128), "G(8)"),
        ("g( n )", Site(32, 32), "G(32)"),
        ("BG(2,M/4)", Site(128, 128), "BG(2,16)"),
        ("BG(2,1)", Site(64, 64), "B(2)"),
        ("BG(4, M)", Site(64, 64), "BG(4,16)"),
        ("G(N/8)", Site(64, 128), "G(N/8)"),
        ("G(N/1)", Site(64, 128), "G(N)"),
        ("G(8)", Site(64, 128), "G(8)"),
        (" b(2) ", Site(64, 128), "B(2)"),
    ],
)
def test_canonical_spelling(spelling: str, site: Site, expected: str) -> None:
    assert site.canonical(spelling) == expected
    assert site.canonical(expected) == expected


@pytest.mark.parametrize("site", SITES)
def test_one_spelling_a_branch_and_one_branch_a_spelling(site: Site) -> None:
    """Two names have the same canonical form exactly when they mean the same convolutions."""
    divisors = [1, 2, 4, 8, 16]
    names = ["S", *(f"B({b})" for b in (2, 4))]
    names += [f"G({g})" for g in divisors] + [f"G(N/{d})" for d in divisors] + ["G(N)"]
    names += [f"BG({b},{g})" for b in (2, 4) for g in (1, 2, 4, "M", "M/2", "M/4")]
    fitting = []
    for name in names:
        try:
            fitting.append((site.canonical(name), convs(name, site)))
        except SpaceError:
            continue
    for (one, branch_one), (two, branch_two) in itertools.combinations(fitting, 2):
        assert (one == two) == (branch_one == branch_two)


def test_groups_relative_to_each_convolution_in_a_block_that_changes_width() -> None:
    assert [conv.groups for conv in convs("G(N/8)", Site(64, 128, 2))] == [8, 1, 16, 1]
    assert [conv.groups for conv in convs("G(8)", Site(64, 128, 2))] == [8, 1, 8, 1]
    assert [(conv.in_channels, conv.out_channels, conv.stride) for conv in convs("G(N/8)", Site(64, 128, 2))] == [
        (64, 64, 2),
        (64, 128, 1),
        (128, 128, 1),
        (128, 128, 1),
    ]
    assert [(c.in_channels, c.out_channels, c.stride) for c in convs("B(4)", Site(64, 128, 2))] == [
        (64, 32, 1),
        (32, 32, 2),
        (32, 128, 1),
    ]


@pytest.mark.parametrize("site", SITES)
def test_every_branch_runs_and_costs_what_the_closed_forms_say(site: Site) -> None:
    x = torch.randn(2, site.in_channels, 8, 8)
    for name in site.candidates((*PAPER, *PUBLISHED_EXTRA)):
        branch = site.build(name)
        modules = list(branch.modules())
        assert all(module.bias is None for module in modules if isinstance(module, nn.Conv2d))
        assert branch(x).shape == (2, site.out_channels, 8 // site.stride, 8 // site.stride)
        assert RESOURCES["params"].read(modules, lambda: None) == closed_forms.params(name, site)
        assert RESOURCES["macs"].read(modules, partial(branch, x[:1])) == closed_forms.macs(name, site, 8)
        assert isinstance(branch[-1], nn.Conv2d)


def test_around_one_convolution_stands_one_pair_with_the_networks_own_parts() -> None:
    """Dilation, padding, bias, normalisation and activation of a site of one convolution."""
    site = Site(8, 16, 2, (3, 5), convolutions=1, padding=(2, 4), dilation=(2, 2), bias=True, padding_mode="reflect",
                norm=partial(nn.GroupNorm, 4), activation=nn.SiLU)  # fmt: skip
    x = torch.randn(2, 8, 21, 30)
    original = nn.Conv2d(8, 16, (3, 5), 2, (2, 4), (2, 2), padding_mode="reflect")
    for name in site.candidates(PAPER):
        branch = site.build(name)
        kinds = [type(module) for module in branch]
        assert branch(x).shape == original(x).shape
        assert [conv.bias is not None for conv in branch if isinstance(conv, nn.Conv2d)][-1]
        convolutions = [module for module in branch if isinstance(module, nn.Conv2d)]
        assert sum(conv.kernel_size == (3, 5) for conv in convolutions) == 1
        assert kinds.count(nn.GroupNorm) == kinds.count(nn.SiLU) == len(convolutions) - 1
    assert [type(module) for module in site.build("G(4)")] == [nn.Conv2d, nn.GroupNorm, nn.SiLU, nn.Conv2d]
    assert {key: value.shape for key, value in site.build("S").conv1.state_dict().items()} == {
        key: value.shape for key, value in original.state_dict().items()
    }


@pytest.mark.parametrize("name", ["", "X", "G", "G()", "G(0)", "G(-2)", "B(M)", "BG(2)", "G(M/2)", "BG(2,N/4)", "S(2)"])
def test_what_is_no_substitute_is_refused(name: str) -> None:
    with pytest.raises(SpaceError, match=r"is not a substitute; write S, G\(g\), B\(b\) or BG\(b,g\)"):
        convs(name, Site(64, 64))


def test_groups_must_divide_the_width() -> None:
    with pytest.raises(SpaceError, match="5 does not divide 64 channels"):
        convs("G(5)", Site(64, 64))
    with pytest.raises(SpaceError, match="16 does not divide 8 channels"):
        convs("BG(2,16)", Site(16, 16))


def test_extra_substitutes_join_where_they_fit() -> None:
    assert set(Site(64, 64).candidates((*PAPER, *PUBLISHED_EXTRA))) - set(Site(64, 64).candidates(PAPER)) == {
        "BG(4,2)",
        "BG(4,4)",
        "BG(4,8)",
    }
    with pytest.raises(SpaceError, match="'Q' is not a substitute"):
        Site(64, 64).candidates(["Q"])
