"""The mobile inverted bottleneck: the published count, and what it computes."""

import pytest
import torch
from torch import nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.site import Site
from nni_blockswap.blocks.substitutes.mobile import MOBILE
from nni_blockswap.errors import SpaceError
from nni_blockswap.spaces import cost_table
from tests.conftest import SMALL, WRN


def test_wrn_40_2_has_as_many_parameters_as_the_authors_code_counts() -> None:
    architecture = Architecture.from_choices(WRN, ["MB(6)"] * 18, {"extra": ["MB(6)"]})
    assert architecture.params == 1_500_986
    assert sum(parameter.numel() for parameter in architecture.build().parameters()) == 1_500_986


def test_it_is_offered_on_request_alone() -> None:
    assert "MB(6)" not in cost_table(WRN, SMALL).candidates[0]
    assert cost_table(WRN, {**SMALL, "extra": ["mb( 6 )"]}).candidates[0][-1] == "MB(6)"
    with pytest.raises(SpaceError, match=r"MB\(e\), as in MB\(6\)"):
        cost_table(WRN, {**SMALL, "extra": ["MB(0)"]})


def test_what_is_spelled_otherwise_is_told_and_not_built() -> None:
    with pytest.raises(SpaceError, match=r"'G\(4\)' is not a substitute; write MB\(e\), as in MB\(6\)"):
        MOBILE.build("G(4)", Site(8, 8))


@pytest.mark.parametrize(("expansion", "kernel"), [(6, 3), (2, 5)])
def test_parameters(expansion: int, kernel: int) -> None:
    m, n = 8, 16
    inner = expansion * m
    branch = Site(m, n, 2, kernel).build(f"MB({expansion})")
    assert sum(p.numel() for p in branch.parameters()) == inner * (m + kernel**2 + n) + 2 * (2 * inner + n)


def test_forward_expands_filters_each_channel_and_projects_without_a_last_relu() -> None:
    torch.manual_seed(0)
    branch = Site(4, 6, 2).build("MB(3)").eval().double()  # fresh BN in evaluation only scales
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    kept = (1 + nn.BatchNorm2d(1).eps) ** -0.5
    wide = torch.einsum("nchw,dc->ndhw", x, branch.conv1.weight[:, :, 0, 0]).mul(kept).relu()
    padded = nn.functional.pad(wide, [1] * 4)
    filtered = torch.zeros(2, 12, 3, 3, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            filtered[:, :, row, column] = (window * branch.conv2.weight[None, :, 0]).sum((2, 3))
    out = torch.einsum("nchw,dc->ndhw", filtered.mul(kept).relu(), branch.conv3.weight[:, :, 0, 0]).mul(kept)
    found = branch(x)
    torch.testing.assert_close(found, out)
    assert found.min() < 0
