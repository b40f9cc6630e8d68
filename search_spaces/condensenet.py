"""CondenseNet on small images (Huang et al., CVPR 2018): a network to compare with, which has no block to swap."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import initialise
from nni_blockswap.training.condensation import LearnedGroupConv, SelectedGroupConv


class CondenseNetSpace(BlockSpace):
    """Dense stages whose 1x1 convolutions learn their groups; by default CondenseNet-86, with 1,451,594 parameters.

    Each layer of a stage adds ``growth`` channels to all that came before: BN, ReLU, 1x1 to ``bottleneck * growth``, in
    learned groups; BN, ReLU, 3x3 to ``growth``, in as many groups. Between stages the resolution halves.

    Args:
        stages: layers of each stage.
        growth: channels that a layer of each stage adds; the stem has twice the first.
        bottleneck: width inside a layer, in ``growth``.
        groups: of all convolutions, and the factor by which the learned ones condense.
        num_classes: outputs of the classifier.
        in_channels: channels of an image.
        image_size: side of a (square) image.
        deployed: standard convolutions instead of learned groups: what the trained network becomes, 520,202 parameters.
    """

    def __init__(
        self,
        stages: Sequence[int] = (14, 14, 14),
        growth: Sequence[int] = (8, 16, 32),
        bottleneck: int = 4,
        groups: int = 4,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        deployed: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = (in_channels, image_size, image_size)
        learned = SelectedGroupConv if deployed else LearnedGroupConv
        channels = 2 * growth[0]
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        for layers, grown in zip(stages, growth, strict=True):
            stage = nn.Sequential()
            for _ in range(layers):
                inner = bottleneck * grown
                stage.append(DenseLayer(learned(channels, inner, groups), inner, grown, groups))
                channels += grown
            self.stages.append(stage)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.halve = nn.AvgPool2d(2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, num_classes)."""
        x = self.conv(images)
        for index, stage in enumerate(self.stages):
            x = stage(self.halve(x) if index else x)
        logits: Tensor = self.fc(self.pool(self.relu(self.bn(x))).flatten(1))
        return logits


class DenseLayer(nn.Module):
    """(N, C, H, W) -> (N, C + grown, H, W): the input, and what a bottleneck makes of it."""

    def __init__(self, reduce: nn.Module, inner: int, grown: int, groups: int) -> None:
        super().__init__()
        self.reduce = reduce
        self.bn = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inner, grown, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(self.reduce(x))))], 1)
