"""ResNet-18 and -34 on large images (He et al., CVPR 2016), converted from torchvision's own modules."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from nni_blockswap.blocks.shells import PostActivationBlock
from nni_blockswap.blocks.site import label
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import initialise
from nni_blockswap.errors import SpaceError

STAGES = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3]}
"""Blocks in each stage, by depth."""

STEM = 64
"""Width of the stem and of the first stage."""


class ResNetSpace(ResNet, BlockSpace):  # type: ignore[misc]  # NNI is not typed
    """torchvision's ResNet-``depth``, every residual branch of which can be substituted.

    Module names and outputs are torchvision's: weights such as ``ResNet34_Weights.IMAGENET1K_V1`` load into the network
    with ``S`` in every block, which then computes the same to the last bit.

    Args:
        depth: 18 or 34.
        num_classes: outputs of the classifier.
        image_size: side of a (square) image.
        late_width: multiplier of the last three stages' widths; with 0.5 depth 18 is the paper's ResNet-18-0.5.
        extra: substitutes to offer beside the paper's, for example
            ``nni_blockswap.blocks.substitutes.paper.PUBLISHED_EXTRA``.

    Raises:
        SpaceError: no such depth.
    """

    attention_points = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        depth: int = 34,
        num_classes: int = 1000,
        image_size: int = 224,
        late_width: float = 1.0,
        extra: Sequence[str] = (),
    ) -> None:
        self._late_width = late_width
        super().__init__(BasicBlock, stages(depth), num_classes)
        self.fc = nn.Linear(self.inplanes, num_classes)
        self.input_size = (3, image_size, image_size)
        convert(self, extra)
        initialise(self)

    def _make_layer(self, block: type[BasicBlock], planes: int, *args: Any, **options: Any) -> nn.Sequential:
        width = planes if planes == STEM else round(planes * self._late_width)
        layer: nn.Sequential = super()._make_layer(block, width, *args, **options)
        return layer


def stages(depth: int) -> list[int]:
    """Blocks in each stage of ResNet-``depth``.

    Raises:
        SpaceError: no ResNet of this depth is made of basic blocks.
    """
    if depth not in STAGES:
        raise SpaceError(f"a ResNet of two-convolution blocks has depth {' or '.join(map(str, STAGES))}, not {depth}.")
    return STAGES[depth]


def convert(network: nn.Module, extra: Sequence[str] = ()) -> None:
    """Replace every ``BasicBlock`` of ``network``, in forward order, by a shell whose branch can be substituted."""
    index = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BasicBlock):
                parent.add_module(name, PostActivationBlock(label(index), child, extra))
                index += 1
