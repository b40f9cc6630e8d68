"""Mask R-CNN (He et al., ICCV 2017) over an FPN whose ResNet backbone can be substituted; the paper's section 7."""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import initialise
from nni_blockswap.errors import SpaceError, shown
from search_spaces.resnet import convert, stages

SMALLEST, LARGEST = 32, 10_000
"""Pixels of a side: a pixel of the coarsest map, and more than any machine trains; ``LARGEST``: proposals, too."""


class MaskRCNNSpace(MaskRCNN, BlockSpace):  # type: ignore[misc]  # NNI is not typed
    """torchvision's Mask R-CNN with a ResNet-``depth`` FPN backbone, every residual branch of which can be substituted.

    Blocks have the labels of ``ResNetSpace``, so that the choices of either serve the other. FPN and heads are fixed
    cost. Module names are torchvision's; with ``S`` in every block losses and detections are equal to the last bit to
    those of a Mask R-CNN over torchvision's own ResNet. Nothing is downloaded.

    The two variants that torchvision builds are the defaults, for training from scratch, and ``frozen_bn=True,
    trainable_layers=3``, for a backbone that starts from pretrained weights.

    MACs are those of backbone, FPN and RPN head on the largest image that the network sees, ``min_size`` x
    ``max_size`` padded to multiples of 32. Box and mask heads, which run once a proposal, are not counted: how many
    proposals there are depends on the image, and what one costs is the same for every architecture.

    Args:
        num_classes: classes, the background included.
        depth: of the ResNet, 18 or 34.
        min_size, max_size: images are scaled so that their shorter side is ``min_size``, but their longer one not above
            ``max_size``.
        box_batch_size_per_image: proposals of an image that train the heads; most of a step's time goes to them.
        frozen_bn: normalise with fixed statistics, scale and shift, which are no parameters then.
        trainable_layers: how many of layer4, layer3, layer2, layer1 and the stem are trained, from the last.
        extra: substitutes to offer beside the paper's, for example
            ``nni_blockswap.blocks.substitutes.paper.PUBLISHED_EXTRA``.

    Raises:
        SpaceError: no such depth, not 0 to 5 trainable layers, or a size that is none.
    """

    detects = True

    def __init__(
        self,
        num_classes: int = 91,
        depth: int = 34,
        min_size: int = 800,
        max_size: int = 1333,
        box_batch_size_per_image: int = 512,
        frozen_bn: bool = False,
        trainable_layers: int = 5,
        extra: Sequence[str] = (),
    ) -> None:
        _check_size("min_size", min_size, SMALLEST)
        _check_size("max_size", max_size, SMALLEST)
        _check_size("box_batch_size_per_image", box_batch_size_per_image, 1)
        if not 0 <= trainable_layers <= 5:
            raise SpaceError(f"a ResNet has 0 to 5 trainable layers (5 trains everything), not {trainable_layers}.")
        body = ResNet(BasicBlock, stages(depth), norm_layer=FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d)
        convert(body, extra)
        initialise(body)
        backbone = _resnet_fpn_extractor(body, trainable_layers)
        super().__init__(
            backbone,
            num_classes,
            min_size=min_size,
            max_size=max_size,
            box_batch_size_per_image=box_batch_size_per_image,
        )
        self.input_size = (3, _padded(min_size), _padded(max_size))

    def run_counted(self, batch_size: int = 1) -> None:
        """Backbone, FPN and RPN head on one image, or on several; see above."""
        image = torch.zeros(batch_size, *self.input_size, device=next(self.parameters()).device)
        self.rpn.head(list(self.backbone(image).values()))


def _check_size(name: str, size: object, smallest: int) -> None:
    if not isinstance(size, int) or not smallest <= size <= LARGEST:
        raise SpaceError(f"{name} is a whole number from {smallest} to {LARGEST:,}, not {shown(size)}.")


def _padded(side: int) -> int:
    """The next multiple of 32, as torchvision pads its images."""
    return -(-side // 32) * 32
