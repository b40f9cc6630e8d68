"""The original narrowed inside: ``W(r)`` keeps a share r of its inner channels, with the original's own weights.

Of a branch of two convolutions, N channels between them, M = max(8, 8 round(r N / 8)) are kept:

    k x k conv to M, BN, ReLU, k x k conv to C_out        k^2 M (C_in + C_out) weights

All else is as in the original: strides, dilations and biases, what stands between the convolutions and in which order,
squeeze-and-excitation, too, narrowed with them. Where that cannot be, as with a shuffle of channels, no W(r) fits.

All convolutions are dense and wide in multiples of 8, so that time falls with MACs. W(1) is S.

A convolution alone has no inner channels. There ``W(r)`` puts M between two factors of it, a k x k and a 1x1
convolution, with nothing between them: what the product of two matrices can be, no more, and thus at its best at once
by a truncated singular value decomposition of the original's weights. A W that saves no weights there does not fit.

An inverted residual is narrowed by ``MB(e,k)``, and ``W(r)`` does not fit it.

Two shares that mean the same M at a site are one candidate, written in lowest terms: W(1/4), W(3/8).
"""

import math
import re
from collections import OrderedDict
from fractions import Fraction

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.inheritance import copy_bias, dense_convolutions
from nni_blockswap.blocks.narrowing import take_over
from nni_blockswap.blocks.site import Site, spelled
from nni_blockswap.blocks.substitutes.paper import PAPERS, Conv, conv_module, stacked
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import SpaceError

WIDTHS = tuple(f"W({share})" for share in ("1/8", "1/4", "3/8", "1/2", "5/8", "3/4", "7/8"))
"""The shares that a library offers."""

STEP = 8
"""Widths are multiples of it."""


class Narrowed:
    """The family of W(r)."""

    usage = "W(r), r a share of the inner channels, as in W(1/2)"

    def reads(self, name: str) -> bool:
        """Whether it is spelled as one of them."""
        return _SPELLING.fullmatch(spelled(name)) is not None

    def canonical(self, name: str, site: Site) -> str:
        """The one spelling of the branch that ``name`` means at ``site``.

        Raises:
            SpaceError: it is more than the original, or that is an inverted residual, or cannot have fewer channels.

        Example:
            >>> NARROWED.canonical("W(1/8)", Site(32, 32)), NARROWED.canonical("W(1)", Site(32, 32))
            ('W(1/4)', 'S')
            >>> NARROWED.canonical("W(1/8)", Site(32, 32, middle_channels=16))
            'W(1/2)'
        """
        width = _width(name, site)
        return ORIGINAL if width == site.inside else f"W({Fraction(width, site.inside)})"

    def build(self, name: str, site: Site) -> nn.Module:
        """The branch: ``conv1, bn1, relu1, conv2``, in the original's order, or at a convolution alone two of them."""
        width = _width(name, site)
        if width == site.inside:
            return PAPERS.build(ORIGINAL, site)
        first = Conv(site.in_channels, width, site.kernel, site.stride, spatial=True)
        if site.convolutions == 1:
            last = conv_module(Conv(width, site.out_channels), site, site.bias)
            return nn.Sequential(OrderedDict(conv1=conv_module(first, site), conv2=last))
        if site.narrow is not None:
            return site.narrow(width)
        return stacked((first, Conv(width, site.out_channels, site.kernel, spatial=True)), site)

    @torch.no_grad()
    def inherit(self, branch: nn.Module, original: nn.Module, entered: Tensor) -> bool:
        """Take over the inner channels of greatest importance; the best factors, of a convolution alone."""
        own, theirs = (dense_convolutions(module) for module in (branch, original))
        if len(own) == 2 and len(theirs) == 1:
            _factorise(own, theirs[0])
            return True
        return take_over(branch, original)


NARROWED = Narrowed()


def _factorise(own: list[nn.Conv2d], original: nn.Conv2d) -> None:
    """The factors whose product is nearest to the original's weights in the sum of squares."""
    width = own[0].out_channels
    left, values, right = torch.linalg.svd(original.weight.flatten(1), full_matrices=False)
    root = values[:width].sqrt()
    own[0].weight.copy_((root[:, None] * right[:width]).view_as(own[0].weight))
    own[1].weight.copy_((left[:, :width] * root).view_as(own[1].weight))
    copy_bias(own[1], original)


def _width(name: str, site: Site) -> int:
    """Inner channels that ``name`` keeps at ``site``."""
    match = _SPELLING.fullmatch(spelled(name))
    if match is None:
        raise SpaceError(f"'{name}' is not a substitute; write {Narrowed.usage}.")
    if site.expansion is not None:
        raise SpaceError(
            f"'{name}' does not fit here: an inverted residual has no dense convolution to narrow; write MB(e,k)."
        )
    share = Fraction(int(match["over"]), int(match["under"] or 1))
    if share > 1:
        raise SpaceError(f"'{name}' does not fit here: it is wider than the original; choose a share below 1.")
    width = max(STEP, STEP * math.floor(share * site.inside / STEP + Fraction(1, 2)))
    if width >= site.inside:
        return site.inside
    if site.rigid is not None:
        raise SpaceError(
            f"'{name}' does not fit here: '{site.rigid}', between the original's convolutions, cannot have fewer "
            "channels, or mixes them."
        )
    kernel = site.kernel if isinstance(site.kernel, tuple) else (site.kernel, site.kernel)
    before, after = site.in_channels * math.prod(kernel), site.out_channels
    if site.convolutions == 1 and width * (before + after) >= before * after:
        raise SpaceError(f"'{name}' does not fit here: its two factors have more weights than the original.")
    return width


_SPELLING = re.compile(r"W\((?P<over>[1-9]\d*)(?:/(?P<under>[1-9]\d*))?\)")
