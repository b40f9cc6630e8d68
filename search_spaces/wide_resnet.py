"""Wide residual networks on small images (Zagoruyko & Komodakis, BMVC 2016), the paper's networks on CIFAR-10."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from nni_blockswap.blocks.shells import PreActivationBlock
from nni_blockswap.blocks.site import Site, label
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.substitutes.paper import PAPER
from nni_blockswap.blocks.weights import initialise
from nni_blockswap.errors import SpaceError


class WideResNetSpace(BlockSpace):
    """WRN-``depth``-``width``: three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times ``width`` channels.

    Args:
        depth: number of convolutions on the main path of the original network; 6n + 4.
        width: multiplier of the stages' widths.
        num_classes: outputs of the classifier.
        in_channels: channels of an image.
        image_size: side of a (square) image.
        extra: substitutes to offer beside the paper's, for example
            ``nni_blockswap.blocks.substitutes.paper.PUBLISHED_EXTRA``.

    Raises:
        SpaceError: ``depth`` is not 6n + 4.
    """

    attention_points = ("stage1", "stage2", "stage3")

    def __init__(
        self,
        depth: int = 40,
        width: int = 2,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not 10 <= depth <= 1000 or (depth - 4) % 6:
            raise SpaceError(f"the depth of a wide ResNet is 6n + 4 (10, 16, 22, 28, 40, ..., 1000), not {depth}.")
        self.input_size = (in_channels, image_size, image_size)
        blocks = _blocks((depth - 4) // 6, width, extra)
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.stage1 = nn.Sequential(*next(blocks))
        self.stage2 = nn.Sequential(*next(blocks))
        self.stage3 = nn.Sequential(*next(blocks))
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, num_classes)."""
        x = self.stage3(self.stage2(self.stage1(self.conv(images))))
        logits: Tensor = self.fc(self.pool(self.relu(self.bn(x))).flatten(1))
        return logits


def _blocks(per_stage: int, width: int, extra: Sequence[str]) -> Iterator[list[PreActivationBlock]]:
    """The blocks of each stage; the second and third stage halve the resolution first."""
    channels, index = 16, 0
    for stage in range(3):
        blocks = []
        for position in range(per_stage):
            site = Site(channels, (16 << stage) * width, stride=2 if stage and not position else 1)
            blocks.append(PreActivationBlock(label(index), site, site.candidates((*PAPER, *extra))))
            channels, index = site.out_channels, index + 1
        yield blocks
