"""The normal cell that DARTS found, in a block's place: substitute ``D`` (section 5).

The cell takes its block's widths and stride. For N channels out, each of its four nodes has C = N/4, and the branch
gives their concatenation:

    s0, s1 = preprocess(x), preprocess(x)                ReLU, 1x1 convolution to C channels, BN, each its own
    s2 = sep(s0) + sep(s1)      s3 = sep(s0) + sep(s1)      s4 = sep(s1) + s0      s5 = s0 + dil(s2)
    output = concat(s2, s3, s4, s5)

``sep`` is ReLU, depthwise 3x3, 1x1, BN, all of it twice; ``dil`` is the same once, its 3x3 dilated by 2. The stride
sits on every edge from s0 or s1, as in the cells of DARTS that reduce; a skip with a stride is their factorised
reduction. A cell of DARTS reads the two cells before it. A branch has one input, which stands for both, as the stem
does for the first cell of DARTS.

Parameters, M channels in: 2 (MC + 2C) + 11 (C^2 + 11C), and with a stride 2 (C^2 + 2C) more.

Which cell the paper trained is not known. It gives 321.5K parameters for WRN-40-2 with the cell in every block; the
authors' code has 300,122 there, of a block that is no cell: 2 N^2 + 20 N of two pairs of a depthwise 3x3 and a 1x1
convolution with BN and ReLU between the pairs, DARTS's ``sep`` alone. This cell gives 207,786. Nothing that was tried
as "the normal cell in each block" gives 321.5K (either published cell, nodes of N/2 to N/8 channels, with or without
BN's affine terms, shortcuts, a 1x1 convolution at the end). So the cell stands here as it was published.

Source: Liu et al., *DARTS: Differentiable Architecture Search*, ICLR 2019, section 2.1, figure 4 (second order).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.blocks.site import Site, spelled
from nni_blockswap.errors import SpaceError

Norm = Callable[[int], nn.Module]

NODES = 4

EDGES = (("sep", 0), ("sep", 1), ("sep", 0), ("sep", 1), ("sep", 1), ("skip", 0), ("skip", 0), ("dil", 2))
"""Operations, each with the state that it reads; two for each node."""


class Darts:
    """The family of the one substitute ``D``."""

    usage = "D, the cell of DARTS"

    def reads(self, name: str) -> bool:
        """Whether it is ``D``."""
        return spelled(name) == "D"

    def canonical(self, name: str, site: Site) -> str:
        """``D``. Raises SpaceError where the cell does not fit."""
        if site.out_channels % NODES:
            raise SpaceError(
                f"'D' does not fit here: it joins {NODES} nodes of equal width, and {NODES} does not divide "
                f"{site.out_channels} channels."
            )
        if site.convolutions != 2 or site.bias or site.stride not in (1, 2):
            raise SpaceError("'D' does not fit here: a cell stands for a residual branch with stride 1 or 2.")
        return "D"

    def build(self, name: str, site: Site) -> nn.Module:
        """The cell."""
        self.canonical(name, site)
        return NormalCell(site.in_channels, site.out_channels, 1 if site.stride == 1 else 2, site.norm)


DARTS = Darts()


class NormalCell(nn.Module):
    """The cell: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), four nodes wide.

    Example:
        >>> sum(parameter.numel() for parameter in NormalCell(64, 64).parameters())
        6864
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, norm_layer: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        channels = out_channels // NODES
        self.preprocess0 = _preprocess(in_channels, channels, norm_layer)
        self.preprocess1 = _preprocess(in_channels, channels, norm_layer)
        self.edges = nn.ModuleList(
            _OPERATIONS[name](channels, stride if state < 2 else 1, norm_layer) for name, state in EDGES
        )

    def forward(self, x: Tensor) -> Tensor:
        states = [self.preprocess0(x), self.preprocess1(x)]
        for node in range(NODES):
            first, second = 2 * node, 2 * node + 1
            states.append(self.edges[first](states[EDGES[first][1]]) + self.edges[second](states[EDGES[second][1]]))
        return torch.cat(states[2:], 1)


class FactorisedReduction(nn.Module):
    """A skip that halves the resolution: two 1x1 convolutions of stride 2, the second on the pixels between, and BN.

    An odd map is filled up with a row and a column of zeros, so that both halves round up.
    """

    def __init__(self, channels: int, norm_layer: Norm) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels, channels - channels // 2, 1, stride=2, bias=False)
        self.bn = norm_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / 2, W / 2), rounded up."""
        x = self.relu(x)
        between = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        reduced: Tensor = self.bn(torch.cat([self.even(x), self.odd(between)], 1))
        return reduced


def _preprocess(in_channels: int, channels: int, norm_layer: Norm) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(in_channels, channels, 1, bias=False), norm_layer(channels))


def _separable(channels: int, stride: int, norm_layer: Norm, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        norm_layer(channels),
    )


def _sep(channels: int, stride: int, norm_layer: Norm) -> nn.Module:
    return nn.Sequential(*_separable(channels, stride, norm_layer), *_separable(channels, 1, norm_layer))


def _dil(channels: int, stride: int, norm_layer: Norm) -> nn.Module:
    return _separable(channels, stride, norm_layer, dilation=2)


def _skip(channels: int, stride: int, norm_layer: Norm) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorisedReduction(channels, norm_layer)


_OPERATIONS = {"sep": _sep, "dil": _dil, "skip": _skip}
