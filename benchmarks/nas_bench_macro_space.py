"""The networks of NAS-Bench-Macro.

Su et al., *Prioritized Architecture Sampling with Monto-Carlo Tree Search*, CVPR 2021.
Eight places in three stages for 32 x 32 images; at each one stands an inverted residual (Sandler et al., CVPR 2018) or
nothing. A network is written as eight digits, ``NAMES`` in order.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import Block
from nni_blockswap.blocks.site import FAMILIES, Site, label
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import initialise
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import SpaceError

NAMES = ("Identity", "MB3_K3", "MB6_K5")
SHAPES = {"MB3_K3": (3, 3), "MB6_K5": (6, 5)}
"""Expansion and kernel."""

WIDTHS = (32, 64, 64, 128, 128, 128, 256, 256, 256)
"""Channels that enter each block, and leave the last; where they change the stride is 2."""


class InvertedResidual(nn.Sequential):
    """1x1 convolution to e C, k x k depthwise with the stride, 1x1 to the new width; BN after each, ReLU after two."""

    def __init__(self, site: Site, expansion: int, kernel: int) -> None:
        width = expansion * site.in_channels
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(site.in_channels, width, 1, bias=False),
                bn1=nn.BatchNorm2d(width),
                relu1=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(width, width, kernel, site.stride, kernel // 2, groups=width, bias=False),
                bn2=nn.BatchNorm2d(width),
                relu2=nn.ReLU(inplace=True),
                conv3=nn.Conv2d(width, site.out_channels, 1, bias=False),
                bn3=nn.BatchNorm2d(site.out_channels),
            )
        )


class Nothing(nn.Module):
    """A branch that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> zeros of that shape."""
        return torch.zeros_like(x)


class MacroCandidates:
    """The three candidates, a family of substitutes."""

    usage = ", ".join(NAMES)

    def reads(self, name: str) -> bool:
        """Whether it is one of them."""
        return name in NAMES

    def canonical(self, name: str, site: Site) -> str:
        """They have one spelling. Raises SpaceError for another name."""
        if name not in NAMES:
            raise SpaceError(f"'{name}' is no candidate of NAS-Bench-Macro; choose from {self.usage}.")
        return name

    def build(self, name: str, site: Site) -> nn.Module:
        """The module; ``Identity`` is a 1x1 convolution with BN where the shape changes, and adds nothing elsewhere."""
        if name in SHAPES:
            return InvertedResidual(site, *SHAPES[name])
        if site.in_channels == site.out_channels:
            return Nothing()
        conv = nn.Conv2d(site.in_channels, site.out_channels, 1, site.stride, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(site.out_channels))

    def inherit(self, branch: nn.Module, original: nn.Module, entered: Tensor) -> bool:
        """One like the original is the original. Returns whether it is."""
        same = _shapes(branch) == _shapes(original)
        if same:
            branch.load_state_dict(original.state_dict())
        return same


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


FAMILIES.register("nas-bench-macro", MacroCandidates())


class MacroBlock(Block):
    """x + branch(x) where the shape stays, else branch(x).

    ``Identity`` adds nothing to what is passed on, and the probe sees zeros. At a place that changes the shape its
    convolution is what the projection of a shortcut is elsewhere, and as little a block's own: the probe sees zeros
    there, too. Counted in, it spoils Fisher potential (see benchmarks/results/nas_bench_macro.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H / stride, W / stride)."""
        branch = self.active_branch()
        if not isinstance(branch, InvertedResidual | Nothing):
            kept: Tensor = branch(x)
            nothing: Tensor = self.probe(torch.zeros_like(kept))
            return kept + nothing
        out = self.residual(x)
        return out + x if out.shape == x.shape else out


class NasBenchMacroSpace(BlockSpace):
    """All 6,561 networks; weights are drawn as the library does it, convolutions from N(0, 2 / (k^2 C_out))."""

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        self.input_size = (3, image_size, image_size)
        self.conv = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        sites = [Site(before, after, 1 if before == after else 2) for before, after in pairwise(WIDTHS)]
        self.body = nn.Sequential(*(self.block(label(index), site) for index, site in enumerate(sites)))
        self.head = nn.Conv2d(WIDTHS[-1], 1280, 1, bias=False)
        self.head_bn = nn.BatchNorm2d(1280)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1280, num_classes)
        initialise(self)

    def block(self, label: str, site: Site) -> Block:
        """What stands at a place."""
        return MacroBlock(label, site, NAMES)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        x = self.body(self.relu(self.bn(self.conv(images))))
        logits: Tensor = self.fc(self.pool(self.relu(self.head_bn(self.head(x)))).flatten(1))
        return logits


class TaughtMacroSpace(NasBenchMacroSpace):
    """The same with an original, ``S``, that a library's candidates learn from: MB6_K5, the largest, everywhere."""

    def block(self, label: str, site: Site) -> Block:
        """What stands at a place."""
        return MacroBlock(label, site, (ORIGINAL, *NAMES), InvertedResidual(site, *SHAPES[NAMES[-1]]))
