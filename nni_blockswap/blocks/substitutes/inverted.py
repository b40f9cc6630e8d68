"""Smaller inverted residuals: ``MB(e,k)`` at a site of MobileNet's kind, expansion e and a depthwise k x k convolution.

    1x1 convolution to e N channels, norm, act, depthwise k x k convolution with the stride, norm, act, 1x1 convolution

Only what is smaller than the original fits: e and k at most its own, and not both the same. Dilation, padding mode, the
norm after the last convolution, and the shortcut are the network's own; the padding is the one that keeps the size.
What else stands between the convolutions is as in the original, such as a squeeze-and-excitation before the last one,
narrowed with them; where something cannot be narrowed, all but norms and activations goes.

Source: Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018, section 3.3.
"""

import re
from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.inheritance import settle_all
from nni_blockswap.blocks.narrowing import layers, take_over
from nni_blockswap.blocks.site import Site, spelled
from nni_blockswap.blocks.substitutes.paper import Conv, conv_module
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import SpaceError

MOBILE = (ORIGINAL, *(f"MB({e},{k})" for k in (3, 5) for e in (1, 2, 3, 4, 6)))
"""Candidates at an inverted residual."""

_SPELLING = re.compile(r"MB\(([1-9]\d*),([1-9]\d*)\)")


class Inverted:
    """The family of ``MB(e,k)``."""

    usage = "MB(e,k), as in MB(3,3), at an inverted residual"

    def reads(self, name: str) -> bool:
        return _SPELLING.fullmatch(spelled(name)) is not None

    def canonical(self, name: str, site: Site) -> str:
        """Raises SpaceError where it is no smaller than the original.

        Example:
            >>> from fractions import Fraction
            >>> INVERTED.canonical("mb(3, 3)", Site(16, 24, kernel=5, expansion=Fraction(6)))
            'MB(3,3)'
        """
        _read(name, site)
        return spelled(name)

    def build(self, name: str, site: Site) -> nn.Module:
        expansion, kernel = _read(name, site)
        inner = expansion * site.in_channels
        if site.narrow is not None:
            return site.narrow(inner, kernel)
        sized = replace(site, padding=None)  # the original's would be that of its larger kernel
        depthwise = conv_module(Conv(inner, inner, kernel, site.stride, inner, spatial=True), sized)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(site.in_channels, inner, 1, bias=False), bn1=site.norm(inner), act1=site.activation(),
            conv2=depthwise, bn2=site.norm(inner), act2=site.activation(),
            conv3=nn.Conv2d(inner, site.out_channels, 1, bias=site.bias),
        )  # fmt: skip
        return nn.Sequential(layers)

    @torch.no_grad()
    def inherit(self, branch: nn.Module, original: nn.Module, entered: Tensor) -> bool:
        """Take over the inner channels of greatest importance, and the middle of a larger depthwise kernel.

        What passes the middle alone has other statistics than what passes the whole, so they are taken anew.
        """
        if not take_over(branch, original):
            return False
        own, theirs = ([conv.kernel_size for conv in _convolutions(one)] for one in (branch, original))
        if own != theirs:
            settle_all(branch, entered)
        return True


INVERTED = Inverted()


def _convolutions(branch: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in layers(branch) if isinstance(layer, nn.Conv2d)]


def _read(name: str, site: Site) -> tuple[int, int]:
    match = _SPELLING.fullmatch(spelled(name))
    if match is None:
        raise SpaceError(f"'{name}' is not a substitute; write {Inverted.usage}.")
    expansion, kernel = int(match[1]), int(match[2])
    if site.expansion is None:
        raise SpaceError(f"'{name}' does not fit here: it takes the place of an inverted residual.")
    if not isinstance(site.kernel, int) or kernel % 2 == 0:
        raise SpaceError(f"'{name}' does not fit here: its kernel is odd, and the original's is square.")
    at_most = expansion <= site.expansion and kernel <= site.kernel
    if not at_most or (expansion == site.expansion and kernel == site.kernel):
        raise SpaceError(
            f"'{name}' does not fit here: the original has expansion {site.expansion} and kernel {site.kernel}."
        )
    return expansion, kernel
