"""Large images from folders train/<class>/ and val/<class>/, ImageNet among them: decoded and augmented per image."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import DataError, shown
from nni_blockswap.seeds import derived_seed
from nni_blockswap.tasks.base import Batches
from nni_blockswap.tasks.classification import Classification, Labelled, minibatch_indices
from nni_blockswap.tasks.images import class_names, decoded, labelled_files

_log = logging.getLogger(__name__)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images; torchvision's pretrained networks expect them."""


class ImageFolderTask(Classification):
    """Classification of images in folders, with the standard ImageNet augmentation (random resized crop and flip).

    Args:
        name: of the data set.
        root: folder that holds train/ and, for trials, val/ or test/.
        image_size: side of the network's input.
        classes: number of classes the set must not exceed; None takes what is there. Those of a set that has fewer are
            numbered as they are, and a warning says so.

    Raises:
        DataError: there is no train/ folder, it holds more classes, or ``image_size`` is no number of pixels.
    """

    def __init__(self, name: str, root: str | None, image_size: int = 224, classes: int | None = None) -> None:
        if root is None or not (Path(root) / "train").is_dir():
            raise DataError(f"{name} needs a folder that holds train/<class>/*.jpg; there is none in '{root}'.")
        if type(image_size) is not int or image_size < 1:  # True would be one pixel
            raise DataError(f"{name}'s image_size is a number of pixels, 1 or more, not {shown(image_size)}.")
        self.name = name
        self.root = Path(root)
        self.image_size = image_size
        self._classes = class_names(self.root / "train", classes)
        self._files = labelled_files(self.root / "train", self._classes)
        self.num_classes = classes or len(self._classes)
        if len(self._classes) < self.num_classes:
            _tell_of_part(name, self.root / "train", len(self._classes), self.num_classes)

    def train_loader(self, batch_size: int, *, seed: int = 0, workers: int = 0) -> "DataLoader[Labelled]":
        """Shuffled, augmented batches; the last, incomplete one is dropped."""
        order = torch.Generator().manual_seed(seed)
        data = _Files(self._files, _transform(self.image_size, train=True))
        return Batches(
            data, batch_size, shuffle=True, drop_last=True, generator=order, num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def val_loader(self, batch_size: int, *, workers: int = 0) -> "DataLoader[Labelled]":
        """Batches of val/ (or test/), centre-cropped, in order. Raises DataError where it has a class of its own."""
        folder = next((self.root / part for part in ("val", "test") if (self.root / part).is_dir()), None)
        if folder is None:
            raise DataError(f"validation needs a folder val/<class>/ (or test/<class>/) in '{self.root}'.")
        data = _Files(labelled_files(folder, self._classes, held_out=True), _transform(self.image_size, train=False))
        return DataLoader(data, batch_size, num_workers=workers, pin_memory=torch.cuda.is_available())

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Labelled:
        """The ``index``-th minibatch that ``seed`` draws; only its own images are read."""
        chosen = minibatch_indices(len(self._files), batch_size, seed, index)
        data = _Files(self._files, _transform(self.image_size, train=augment))
        with seeded(derived_seed(seed, index)):
            examples = [data[position] for position in chosen]
        return torch.stack([image for image, _ in examples]), torch.tensor([label for _, label in examples])

    def prepare(self, batch: Labelled, *, train: bool, generator: torch.Generator | None = None) -> Labelled:
        """The batch as it is: images are normalised and augmented one by one in the loader."""
        return batch


def image_folder(root: str | None, image_size: int = 224) -> ImageFolderTask:
    """Any images in folders train/<class>/ and val/<class>/."""
    return ImageFolderTask("image-folder", root, image_size)


def imagenet(root: str | None, image_size: int = 224) -> ImageFolderTask:
    """ImageNet (Russakovsky et al., 2015) in folders train/<wnid>/ and val/<wnid>/."""
    return ImageFolderTask("imagenet", root, image_size, classes=1000)


@cache  # said once
def _tell_of_part(name: str, folder: Path, found: int, classes: int) -> None:
    _log.warning(
        "%s has %d classes and '%s' holds %d: they are numbered from 0 in the order of their names, and a network that "
        "was trained on all %d knows them by other numbers. A search is as good; to train, take the data image-folder "
        "and a teacher that was trained on it.",
        name, classes, folder, found, classes,
    )  # fmt: skip


class _Files(Dataset[Labelled]):
    def __init__(self, files: Sequence[tuple[str, int]], transform: Any) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:  # type: ignore[override]  # collated by the loader
        path, label = self.files[index]
        return self.transform(decoded(path)), label


def _transform(size: int, *, train: bool) -> Any:
    from torchvision.transforms import v2

    geometry = (
        [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        if train
        else [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]
    )
    return v2.Compose([*geometry, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
