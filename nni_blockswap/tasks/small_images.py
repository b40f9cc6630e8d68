"""Small images that fit in memory as bytes: the digits that scikit-learn ships, CIFAR-10 and CIFAR-100.

Batches leave the loader as bytes; normalisation and augmentation (pad-and-crop, flip, Cutout) run on whole batches, on
the device of the batch.
"""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from nni_blockswap.errors import DataError
from nni_blockswap.seeds import derived_seed
from nni_blockswap.tasks.augmentation import Augmentation
from nni_blockswap.tasks.base import Batches
from nni_blockswap.tasks.classification import Classification, Labelled, minibatch_indices
from nni_blockswap.tasks.images import (
    FileImages,
    Images,
    InMemoryImages,
    ScaledImages,
    class_names,
    labelled_files,
    limited,
)

_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
"""Mean and standard deviation of each channel of the training set."""


class SmallImages(Classification):
    """Classification of small images.

    Args:
        name: of the data set.
        classes: number of classes.
        train, held_out: make the two sets, read when first needed.
        mean, std: of each channel, in [0, 1].
        augmentation: of training images.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        train: Callable[[], Images],
        held_out: Callable[[], Images],
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation,
    ) -> None:
        self.name = name
        self.num_classes = classes
        self.augmentation = augmentation
        self._train = train
        self._held_out = held_out
        self._mean = 255 * torch.tensor(mean).view(1, -1, 1, 1)
        self._std = 255 * torch.tensor(std).view(1, -1, 1, 1)

    @cached_property  # decoded once, for all loaders
    def _train_set(self) -> "_InMemory":
        return _InMemory(self._train())

    @cached_property
    def _held_out_set(self) -> "_InMemory":
        return _InMemory(self._held_out())

    def train_loader(self, batch_size: int, *, seed: int = 0, workers: int = 0) -> "DataLoader[Labelled]":
        """Shuffled batches of bytes; the last, incomplete one is dropped."""
        data = self._train_set
        if len(data) < batch_size:
            raise DataError(f"a batch of {batch_size} needs as many training images; {self.name} has {len(data)}.")
        order = torch.Generator().manual_seed(seed)
        return Batches(data, batch_size, shuffle=True, drop_last=True, generator=order, collate_fn=_as_fetched)

    def val_loader(self, batch_size: int, *, workers: int = 0) -> "DataLoader[Labelled]":
        """Batches of bytes, in order."""
        return DataLoader(self._held_out_set, batch_size, collate_fn=_as_fetched)

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Labelled:
        """The ``index``-th minibatch that ``seed`` draws; only its own images are read."""
        data = self._train()
        chosen = minibatch_indices(len(data), batch_size, seed, index)
        generator = torch.Generator().manual_seed(derived_seed(seed, index))
        return self.prepare((data.take(chosen), data.labels[list(chosen)]), train=augment, generator=generator)

    def prepare(self, batch: Labelled, *, train: bool, generator: torch.Generator | None = None) -> Labelled:
        """Bytes -> normalised floats; in training augmented afterwards, so that padding is the mean colour."""
        images, labels = batch
        images = (images.float() - self._mean.to(images.device)) / self._std.to(images.device)
        return (self.augmentation(images, generator) if train else images), labels


def digits(root: str | None, image_size: int = 16, held_out: int = 360) -> SmallImages:
    """The 1,797 handwritten digits that scikit-learn ships (8x8 grey levels), upscaled; ``root`` is not used.

    Args:
        image_size: side after bilinear upscaling.
        held_out: number of images, evenly over the classes, that are kept for validation.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    rows = train_test_split(range(len(data.target)), test_size=held_out, random_state=0, stratify=data.target)
    grey = torch.tensor(data.images, dtype=torch.float32)[:, None] * (255 / 16)
    resized = F.interpolate(grey, size=(image_size, image_size), mode="bilinear", align_corners=False)
    images, labels = resized.round().to(torch.uint8), torch.tensor(data.target, dtype=torch.int64)
    train, validation = (InMemoryImages(images[part], labels[part]) for part in rows)
    augmentation = Augmentation(pad=image_size // 8, flip=False, cutout=0)
    return SmallImages("digits", 10, lambda: train, lambda: validation, (0.305,), (0.319,), augmentation)


def cifar10(
    root: str | None,
    augment: str = "crop+flip+cutout",
    limit: int | None = None,
    held_out: int | None = None,
    image_size: int = 32,
) -> SmallImages:
    """CIFAR-10 (Krizhevsky, 2009), 32x32; see ``_cifar``."""
    return _cifar("CIFAR10", root, augment, limit, held_out, image_size, *_CIFAR10)


def cifar100(
    root: str | None,
    augment: str = "crop+flip+cutout",
    limit: int | None = None,
    held_out: int | None = None,
    image_size: int = 32,
) -> SmallImages:
    """CIFAR-100 (Krizhevsky, 2009), 32x32; see ``_cifar``."""
    return _cifar("CIFAR100", root, augment, limit, held_out, image_size, *_CIFAR100)


def _cifar(
    name: str,
    root: str | None,
    augment: str,
    limit: int | None,
    held_out: int | None,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> SmallImages:
    """CIFAR below ``root``: image folders train/<class>/ and test/<class>/, or torchvision's files, else a download.

    Args:
        augment: what training images go through, of crop, flip and cutout, joined by "+", or "none".
        limit, held_out: use only so many training and test images, drawn once, evenly over the classes.
        image_size: side that images are scaled to, a power of two up to 32; crop and cutout are scaled alike.
    """
    if type(image_size) is not int or image_size not in (4, 8, 16, 32):  # 8.0 is no side
        raise DataError(f"{name} is used at an image_size of 4, 8, 16 or 32, not {image_size!r}.")
    steps = set() if augment == "none" else set(augment.split("+"))
    if steps - {"crop", "flip", "cutout"}:
        raise DataError(f"augment is made of crop, flip and cutout joined by '+', or 'none', not '{augment}'.")
    if root is None:
        raise DataError(f"{name} needs a folder: give the one that holds it, or that it may be downloaded to.")
    pad, hole = image_size // 8, image_size // 2
    augmentation = Augmentation(pad if "crop" in steps else 0, "flip" in steps, hole if "cutout" in steps else 0)
    folder = Path(root)
    classes = int(name.removeprefix("CIFAR"))
    names = class_names(folder / "train", classes) if (folder / "train").is_dir() else None

    def read(train: bool) -> Images:
        if names is None:
            return _from_torchvision(name, folder, train)
        files = labelled_files(folder / ("train" if train else "test"), names, held_out=not train)
        return FileImages(files, (32, 32))

    def chosen(train: bool) -> Images:
        images = limited(read(train), limit if train else held_out)
        return images if image_size == 32 else ScaledImages(images, image_size)

    sets = cache(lambda: chosen(True)), cache(lambda: chosen(False))
    return SmallImages(name.lower(), classes, *sets, mean, std, augmentation)


class _InMemory(Dataset[Labelled]):
    """Fetches whole batches at once; decodes everything on construction."""

    def __init__(self, images: Images) -> None:
        self.images = images.take(range(len(images)))
        self.labels = images.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Labelled:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Labelled:
        return self.images[indices], self.labels[indices]


def _as_fetched(batch: Any) -> Any:
    return batch


def _from_torchvision(name: str, folder: Path, train: bool) -> InMemoryImages:
    from torchvision import datasets

    make: Any = getattr(datasets, name)
    try:
        try:
            data = make(str(folder), train=train, download=False)
        except RuntimeError:  # not there, or damaged
            data = make(str(folder), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not in '{folder}' and cannot be downloaded ({error}); put torchvision's copy there, or image "
            "folders train/<class>/ and test/<class>/."
        ) from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return InMemoryImages(images, torch.tensor(data.targets))
