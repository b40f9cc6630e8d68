"""Labelled sets of images of one size: held as bytes, or decoded from files when asked for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nni_blockswap.errors import DataError, first_line

READ = (".jpg", ".jpeg", ".png", ".webp")
NOT_READ = (".bmp", ".pgm", ".ppm", ".tif", ".tiff")
"""How names of images end, in small letters; torchvision decodes the first."""


class Images(Protocol):
    """A labelled set of images of one size."""

    labels: Tensor

    def __len__(self) -> int: ...
    def take(self, indices: Sequence[int]) -> Tensor:
        """Bytes (n, C, H, W)."""


class InMemoryImages:
    """Images held as bytes."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Bytes (n, C, H, W)."""
        return self.images[list(indices)]


class FileImages:
    """Image files, decoded when asked for."""

    def __init__(self, files: Sequence[tuple[str, int]], size: tuple[int, int]) -> None:
        self.files = list(files)
        self.labels = torch.tensor([label for _, label in files])
        self._size = size

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Bytes (n, 3, H, W). Raises DataError where a file cannot be read or has another size."""
        images = []
        for index in indices:
            path = self.files[index][0]
            image = decoded(path)
            if tuple(image.shape[1:]) != self._size:
                height, width = image.shape[1:]
                raise DataError(f"'{path}' is {width}x{height}; every image must be {self._size[1]}x{self._size[0]}.")
            images.append(image)
        return torch.stack(images)


class ScaledImages:
    """Images of another set at another size, each pixel the mean of those that it covers."""

    def __init__(self, images: Images, size: int) -> None:
        self.labels = images.labels
        self._images, self._size = images, size

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Bytes (n, C, size, size)."""
        parts = torch.split(self._images.take(indices), 4096)  # so many at a time that their floats take little memory
        return torch.cat([F.interpolate(one.float(), self._size, mode="area").round().byte() for one in parts])


def decoded(path: str) -> Tensor:
    """The image file as RGB bytes (3, H, W), of 16 bits the upper ones. Raises DataError where it cannot be read."""
    from torchvision.io import ImageReadMode, decode_image

    try:
        image: Tensor = decode_image(path, ImageReadMode.RGB)
    except RuntimeError as error:
        raise DataError(f"the image '{path}' cannot be read: {first_line(error)}.") from error
    return (image.int() >> 8).byte() if image.dtype == torch.uint16 else image


def class_names(folder: Path, most: int | None = None) -> list[str]:
    """Names of the folders in ``folder`` that are not hidden, sorted: class 0, class 1 and so on.

    Raises:
        DataError: there are more than ``most``.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if most is not None and len(found) > most:
        raise DataError(
            f"'{folder}' holds {len(found)} folders, and the data set has {most} classes; take away what is no class."
        )
    return found


def labelled_files(folder: Path, classes: Sequence[str], *, held_out: bool = False) -> list[tuple[str, int]]:
    """(path, class) of all images of ``folder``/<class>/, at any depth, sorted; what is hidden is none.

    Args:
        folder: of the training set or of a held-out set.
        classes: the training set's, in the order of their numbers.
        held_out: not every class needs an image.

    Raises:
        DataError: it holds no images, a folder that is none of ``classes``, or images of a kind that is not read.
    """
    try:
        found = {name: _images(folder / name) for name in class_names(folder)}
    except FileNotFoundError as error:
        raise DataError(f"'{folder}' must hold one folder of images for each class: {error}.") from error
    number = {name: index for index, name in enumerate(classes)}
    unknown = [name for name in found if name not in number]
    if unknown:
        raise DataError(
            f"'{folder}' has a class '{unknown[0]}' that the training set has not; "
            "take its folder away, or add one of the same name to train/."
        )
    without = [name for name, files in found.items() if not files]
    if len(without) == len(found) or (without and not held_out):
        where = folder / without[0] if without else folder
        raise DataError(f"'{folder}' must hold one folder of images for each class; there are none in '{where}'.")
    return [(path, number[name]) for name, files in found.items() for path in files]


def _images(folder: Path) -> list[str]:
    """Paths of the images below ``folder``, sorted by folder and name."""
    places = sorted(os.walk(folder, followlinks=True))
    paths = (os.path.join(place, name) for place, _, names in places for name in sorted(names))
    visible = (path for path in paths if f"{os.sep}." not in path[len(str(folder)) :])
    files = [path for path in visible if path.lower().endswith(READ + NOT_READ)]
    unread = [path for path in files if path.lower().endswith(NOT_READ)]
    if unread:
        raise DataError(f"'{unread[0]}' is of a kind that is not read; convert it to one of {', '.join(READ)}.")
    return files


def limited(images: Images, limit: object) -> Images:
    """At most ``limit`` of ``images``, always the same ones, evenly over the classes.

    Raises:
        DataError: ``limit`` is no whole number, or leaves a class no image on one of the two sides.
    """
    total, classes = len(images), len(set(images.labels.tolist()))
    if limit is None or (isinstance(limit, int) and limit >= total):
        return images
    if not isinstance(limit, int) or not classes <= limit <= total - classes:
        raise DataError(
            f"images are taken evenly over {classes} classes, {classes} to {total - classes} or all {total} of them, "
            f"not {limit!r}."
        )
    from sklearn.model_selection import train_test_split

    chosen, _ = train_test_split(range(len(images)), train_size=limit, random_state=0, stratify=images.labels)
    if isinstance(images, FileImages):
        return FileImages([images.files[index] for index in chosen], images._size)
    return InMemoryImages(images.take(chosen), images.labels[list(chosen)])
