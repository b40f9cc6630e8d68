"""The mobile inverted bottleneck: substitute ``MB(e)``, e times as wide inside as its input.

    1x1 conv to E = eM channels, BN, ReLU, depthwise k x k conv with the stride, BN, ReLU, 1x1 conv to N, BN

Convolution weights, M channels in and N out: E (M + k^2 + N); BN has 2 (2E + N) more. As in the code of the paper's
authors, whose WRN-40-2 has 1,500,986 parameters with ``MB(6)`` in every block: ReLU is not capped at 6.

Source: Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018, section 3.3.
"""

import re
from collections import OrderedDict

from torch import nn

from nni_blockswap.blocks.site import Site, spelled
from nni_blockswap.blocks.substitutes.paper import Conv, conv_module
from nni_blockswap.errors import SpaceError

_SPELLING = re.compile(r"MB\(([1-9]\d*)\)")


class Mobile:
    """The family of ``MB(e)``."""

    usage = "MB(e), as in MB(6)"

    def reads(self, name: str) -> bool:
        """Whether it is spelled as one of them."""
        return _SPELLING.fullmatch(spelled(name)) is not None

    def canonical(self, name: str, site: Site) -> str:
        """Its spelling without spaces; it fits everywhere."""
        return spelled(name)

    def build(self, name: str, site: Site) -> nn.Sequential:
        """The branch.

        Raises:
            SpaceError: it is no ``MB(e)``.

        Example:
            >>> branch = MOBILE.build("MB(6)", Site(32, 32))
            >>> sum(parameter.numel() for parameter in branch.parameters())
            14848
        """
        match = _SPELLING.fullmatch(spelled(name))
        if match is None:
            raise SpaceError(f"'{name}' is not a substitute; write {Mobile.usage}.")
        inner = int(match[1]) * site.in_channels
        return nn.Sequential(
            OrderedDict(
                conv1=conv_module(Conv(site.in_channels, inner), site),
                bn1=site.norm(inner),
                relu1=site.activation(),
                conv2=conv_module(Conv(inner, inner, site.kernel, site.stride, inner, spatial=True), site),
                bn2=site.norm(inner),
                relu2=site.activation(),
                conv3=conv_module(Conv(inner, site.out_channels), site, bias=site.bias),
                bn3=site.norm(site.out_channels),
            )
        )


MOBILE = Mobile()
