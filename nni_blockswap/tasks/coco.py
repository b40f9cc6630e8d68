"""COCO (Lin et al., ECCV 2014): instances as boxes, classes and masks; the losses of Mask R-CNN, summed."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nni_blockswap.draws import drawn_alike
from nni_blockswap.errors import DataError
from nni_blockswap.metric import BOX_AP
from nni_blockswap.seeds import derived_seed
from nni_blockswap.tasks.annotations import read_annotations
from nni_blockswap.tasks.base import Batches, fingerprint
from nni_blockswap.tasks.classification import minibatch_indices
from nni_blockswap.tasks.images import decoded

Target = dict[str, Tensor]
"""Of one image with n instances: boxes (n, 4) as x1, y1, x2, y2 in pixels, labels (n,), masks (n, H, W) as bytes,
area (n,), iscrowd (n,) and image_id ()."""

Detection = tuple[list[Tensor], list[Target]]
"""Images, each (3, H, W) in a size of its own, and a target for each."""


class Coco:
    """Detection on data in COCO's layout: train2017/, val2017/, annotations/instances_{train,val}2017.json.

    Training leaves out crowds, boxes without area in their image and images without a box; its one augmentation is a
    horizontal flip, as in torchvision's reference. The held-out set keeps every image and its crowds, which COCO's
    metrics do not count against a detector.

    Raises:
        DataError: the files are not there or cannot be read.
    """

    name = "coco"
    num_classes = 91  # the background, and category numbers up to 90, with gaps
    metric = BOX_AP

    def __init__(self, root: str | None) -> None:
        if root is None or not (Path(root) / "annotations").is_dir():
            raise DataError(
                "coco needs a folder that holds train2017/, val2017/ and annotations/instances_{train,val}2017.json; "
                f"there is none in '{root}'."
            )
        self.root = Path(root)

    @cached_property
    def _train(self) -> "Instances":
        return Instances(self.root, "train2017", training=True)

    @cached_property
    def held_out(self) -> "Instances":
        """The validation set; its ``index`` is the truth that COCO's metrics compare with."""
        return Instances(self.root, "val2017", training=False)

    def __getstate__(self) -> dict[str, Any]:
        """The folder alone: a process that wants annotations reads them."""
        return {"root": self.root}

    def train_loader(self, batch_size: int, *, seed: int = 0, workers: int = 0) -> "DataLoader[Detection]":
        """Shuffled batches, images as bytes; the last, incomplete one is dropped."""
        if len(self._train) < batch_size:
            raise DataError(f"a batch of {batch_size} needs as many training images; coco has {len(self._train)} here.")
        order = torch.Generator().manual_seed(seed)
        return Batches(
            self._train, batch_size, shuffle=True, drop_last=True, generator=order, num_workers=workers,
            collate_fn=_as_lists,
        )  # fmt: skip

    def val_loader(self, batch_size: int, *, workers: int = 0) -> "DataLoader[Detection]":
        """Batches of the held-out set, images as bytes, in order."""
        return DataLoader(self.held_out, batch_size, num_workers=workers, collate_fn=_as_lists)

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Detection:
        """The ``index``-th minibatch that ``seed`` draws; only its own images are read."""
        chosen = minibatch_indices(len(self._train), batch_size, seed, index)
        generator = torch.Generator().manual_seed(derived_seed(seed, index))
        return self.prepare(_as_lists(self._train[one] for one in chosen), train=augment, generator=generator)

    def prepare(self, batch: Detection, *, train: bool, generator: torch.Generator | None = None) -> Detection:
        """Bytes -> floats in [0, 1]; in training every second image, drawn at random, is mirrored."""
        images, targets = batch
        examples = [(image.float() / 255, target) for image, target in zip(images, targets, strict=True)]
        if train:
            mirror = torch.rand(len(images), generator=generator, device=generator.device if generator else None) < 0.5
            examples = [_mirrored(*one) if flip else one for one, flip in zip(examples, mirror.tolist(), strict=True)]
        return _as_lists(examples)

    def to(self, batch: Detection, device: torch.device, dtype: torch.dtype | None = None) -> Detection:
        """The batch on ``device``; floating-point images, boxes and areas in ``dtype``."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

        images, targets = batch
        return [moved(image) for image in images], [
            {key: moved(tensor) for key, tensor in target.items()} for target in targets
        ]

    def losses(self, network: nn.Module, batch: Detection) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN by name: objectness and boxes of the RPN; class, boxes and masks of the heads.

        The network has to be in training mode. Anchors and proposals are sampled with torch's global generator.
        """
        images, targets = batch
        losses: dict[str, Tensor] = network(images, targets)
        return losses

    def loss(self, network: nn.Module, batch: Detection) -> Tensor:
        """Sum of ``losses``; anchors and proposals are sampled alike every time, so that a score can be repeated."""
        with drawn_alike(batch[0][0].device):
            return torch.stack(list(self.losses(network, batch).values())).sum()

    def fingerprint(self, batch: Detection) -> str:
        """Sixteen hexadecimal digits that name images, boxes, labels and masks."""
        images, targets = batch
        return fingerprint([*images, *(target[key] for target in targets for key in ("boxes", "labels", "masks"))])


def coco(root: str | None) -> Coco:
    """COCO 2017 below ``root``."""
    return Coco(root)


class Instances(Dataset[Any]):
    """One part of COCO; an example is an image (3, H, W) as bytes and its target.

    Args:
        root: folder of the data set.
        part: ``train2017`` or ``val2017``.
        training: leave out crowds, boxes without area and images without a box.
    """

    def __init__(self, root: Path, part: str, *, training: bool) -> None:
        self.folder = root / part
        self.index = read_annotations(root / "annotations" / f"instances_{part}.json")
        for category in self.index.cats:
            if not 0 < category < Coco.num_classes:
                raise DataError(f"'{part}' has a category {category}; COCO's go from 1 to {Coco.num_classes - 1}.")
        self.training = training
        ids = sorted(self.index.imgs)
        self.image_ids = [one for one in ids if self._annotations(one)[0]] if training else ids

    def _annotations(self, image_id: int) -> tuple[list[dict[str, Any]], Tensor]:
        """Those of an image that count, and their boxes (n, 4), as ``_corners`` has them."""
        found, size = self.index.imgToAnns[image_id], self.index.imgs[image_id]
        corners = _corners(found, size)
        if not self.training:
            return found, corners
        have_area = _have_area(corners, size["width"]).tolist()
        kept = [at for at, has_area in enumerate(have_area) if has_area and not found[at].get("iscrowd")]
        return [found[at] for at in kept], corners[kept]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, position: int) -> tuple[Tensor, Target]:
        image_id = self.image_ids[position]
        size = self.index.imgs[image_id]
        path = self.folder / size["file_name"]
        image = decoded(str(path))
        height, width = image.shape[1:]
        if (height, width) != (size["height"], size["width"]):
            raise DataError(
                f"'{path}' is {width}x{height}, and its annotations are of {size['width']}x{size['height']}; take the "
                "image that they were made for."
            )
        return image, self._target(image_id, size)

    def _target(self, image_id: int, size: Mapping[str, int]) -> Target:
        found, corners = self._annotations(image_id)
        masks = [torch.from_numpy(self.index.annToMask(one)) for one in found]
        return {
            "boxes": corners,
            "labels": torch.tensor([one["category_id"] for one in found], dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros(0, size["height"], size["width"], dtype=torch.uint8),
            "area": torch.tensor([one["area"] for one in found], dtype=torch.float32),
            "iscrowd": torch.tensor([one.get("iscrowd", 0) for one in found], dtype=torch.int64),
            "image_id": torch.tensor(image_id),
        }


def _corners(found: Sequence[Mapping[str, Any]], size: Mapping[str, int]) -> Tensor:
    """Boxes (n, 4) as x1, y1, x2, y2, clipped to an image of ``size``."""
    corners = torch.tensor([one["bbox"] for one in found], dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    corners[:, 0::2].clamp_(0, size["width"])
    corners[:, 1::2].clamp_(0, size["height"])
    return corners


def _have_area(corners: Tensor, width: int) -> Tensor:
    """Whether something of boxes (n, 4) lies within their image, in float32 and mirrored, too: (n,)."""
    x1, y1, x2, y2 = corners.unbind(1)
    return (x2 > x1) & (y2 > y1) & (width - x1 > width - x2)


def _as_lists(examples: Iterable[tuple[Tensor, Target]]) -> Detection:
    images, targets = zip(*examples, strict=True)
    return list(images), list(targets)


def _mirrored(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Left and right exchanged."""
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image.flip(-1), {**target, "boxes": boxes, "masks": target["masks"].flip(-1)}
