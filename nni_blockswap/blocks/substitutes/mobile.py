"""The mobile inverted bottleneck: substitute ``MB(e)``, e times as wide inside as its input.

    1x1 conv to E = eM channels, BN, ReLU, depthwise k x k conv with the stride, BN, ReLU, 1x1 conv to N, BN

Convolution weights, M channels in and N out: E (M + k^2 + N); BN has 2 (2E + N) more. As in the code of the paper's
authors, whose WRN-40-2 has 1,500,986 parameters with ``MB(6)`` in every block: ReLU is not capped at 6.

Source: Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018, section 3.3.
"""

import re
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.inheritance import (
    copy_affine,
    copy_bias,
    dense_convolutions,
    first_norm,
    fit_affine,
    importance,
    is_fittable,
    lifted,
    separate_inputs,
    separate_outputs,
    settled,
)
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

    @torch.no_grad()
    def inherit(self, branch: nn.Module, original: nn.Module, entered: Tensor) -> bool:
        """Products of one depthwise kernel and one number a channel: the original's kernels, as near as they come.

        Of a convolution alone each channel that enters has e of them, the first singular vectors of its part of the
        kernel; e = k k of them are all of it. Of two convolutions each of the first one's outputs has one, and the
        second one's kernel is summed over its positions. Then the last norm has the scale and the shift that make what
        leaves nearest to what leaves the original. Where it has none, or has an activation inside, nothing is taken
        over.
        """
        theirs = dense_convolutions(original)
        if len(theirs) not in (1, 2) or (len(theirs) == 2 and theirs[0].out_channels != theirs[1].in_channels):
            return False
        expand, before, activation, depthwise, after, _, project, last = list[Any](branch.children())
        if not is_fittable(last):
            return False
        if len(theirs) == 1:
            separate_inputs(expand, depthwise, project, theirs[0].weight)
        else:
            norm = first_norm(original, theirs[0].out_channels)
            most = min(depthwise.out_channels, theirs[0].out_channels)
            kept = importance(theirs[0].weight, theirs[1].weight, norm).topk(most).indices.sort().values
            separate_outputs(expand, depthwise, theirs[0].weight[kept])
            project.weight[:, :most, 0, 0] = theirs[1].weight[:, kept].sum((2, 3))
            project.weight[:, most:] = 0
        x, scale = lifted(before, expand(entered))
        depthwise.weight.mul_(scale[:, None, None, None])
        x = depthwise(activation(x))
        if len(theirs) == 1:
            x, scale = lifted(after, x)
            project.weight.mul_(scale[:, None, None])
        else:
            copy_affine(after, norm, kept)
            x = settled(after, x)
        copy_bias(project, theirs[-1])
        fit_affine(last, project(activation(x)), original(entered))
        return True


MOBILE = Mobile()
