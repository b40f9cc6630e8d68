"""The smaller inverted residual: its count, what it computes, and where it does not fit."""

from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_blockswap.blocks.site import Site
from nni_blockswap.errors import SpaceError


@pytest.mark.parametrize(("expansion", "kernel"), [(6, 3), (2, 5)])
def test_parameters(expansion: int, kernel: int) -> None:
    m, n = 8, 12
    inner = expansion * m
    branch = Site(m, n, 2, kernel=5, convolutions=1, expansion=Fraction(6)).build(f"MB({expansion},{kernel})")
    assert sum(p.numel() for p in branch.parameters()) == inner * (m + kernel**2 + n) + 2 * 2 * inner


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [None, 2, 4, "same"])
def test_forward_dilates_and_pads_as_the_original_and_keeps_the_size_with_a_smaller_kernel(
    dilation: int, padding: int | str | None
) -> None:
    torch.manual_seed(0)
    site = Site(
        4, 6, kernel=5, convolutions=1, padding=padding, dilation=dilation, padding_mode="reflect",
        expansion=Fraction(6),
    )  # fmt: skip
    branch = site.build("MB(3,3)").eval().double()  # fresh BN in evaluation only scales
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    kept = (1 + nn.BatchNorm2d(1).eps) ** -0.5
    wide = torch.einsum("nchw,dc->ndhw", x, branch.conv1.weight[:, :, 0, 0]).mul(kept).relu()
    padded = F.pad(wide, [dilation] * 4, mode="reflect")
    filtered = torch.zeros(2, 12, 9, 9, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            window = padded[:, :, row * dilation : row * dilation + 9, column * dilation : column * dilation + 9]
            filtered += window * branch.conv2.weight[:, 0, row, column, None, None]
    expected = torch.einsum("nchw,dc->ndhw", filtered.mul(kept).relu(), branch.conv3.weight[:, :, 0, 0])
    torch.testing.assert_close(branch(x), expected)


@pytest.mark.parametrize(
    ("name", "site", "sentence"),
    [
        ("MB(6,3)", Site(8, 8, expansion=Fraction(6)), "the original has expansion 6 and kernel 3"),
        ("MB(2,5)", Site(8, 8, expansion=Fraction(6)), "the original has expansion 6 and kernel 3"),
        ("MB(2,2)", Site(8, 8, expansion=Fraction(6)), "its kernel is odd, and the original's is square"),
        ("MB(2,3)", Site(8, 8, kernel=(3, 5), expansion=Fraction(6)), "its kernel is odd, and the original's is sq"),
        ("MB(2,3)", Site(8, 8), "it takes the place of an inverted residual"),
    ],
)
def test_only_what_is_smaller_fits_and_only_an_inverted_residual(name: str, site: Site, sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence):
        site.canonical(name)
