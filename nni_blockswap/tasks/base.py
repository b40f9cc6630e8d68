"""What every task offers. Proxies, search and trials see a task and a batch, never images and labels."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nni_blockswap.blocks.digest import bytes_of
from nni_blockswap.metric import Metric

Batch = Any
"""What a task's loaders yield and its loss takes: (images, labels) in classification, a list of images and a list of
targets in detection."""


class Batches(DataLoader[Batch]):
    """A DataLoader whose order and reading processes start with the first batch asked for, not with its iterator.

    Lightning makes the iterator before a run's first epoch begins, thus before the epoch has set its seeds.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator, which does as well
        yield from super().__iter__()


class Task(Protocol):
    """A data set with its loss, metric and loaders.

    A task that cannot tell how many classes there are, as one of a user's loader, sets ``knows_all_classes`` to False:
    ``num_classes`` is then how many there are at least.

    In time: a search asks for ``minibatch`` and ``loss`` alone. A trial takes batches from ``train_loader``, moves them
    with ``to``, passes them through ``prepare`` on their device, and hands the result to the network and to ``loss``.
    """

    name: str
    num_classes: int
    metric: Metric

    def train_loader(self, batch_size: int, *, seed: int = 0, workers: int = 0) -> "DataLoader[Batch]":
        """Shuffled batches of the training set; the last, incomplete one is dropped."""

    def val_loader(self, batch_size: int, *, workers: int = 0) -> "DataLoader[Batch]":
        """Batches of the held-out set, in order."""

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Batch:
        """The ``index``-th of the minibatches that ``seed`` draws from the training set, prepared, on the CPU.

        Only its own images are read. Raises TooFewError where the training set is too small.
        """

    def prepare(self, batch: Batch, *, train: bool, generator: torch.Generator | None = None) -> Batch:
        """From a loader's batch to the network's input, on the batch's device: normalised, in training augmented."""

    def to(self, batch: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """The batch on another device; floating-point images in another precision."""

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Loss of a prepared batch: a scalar, a mean over the batch."""

    def fingerprint(self, batch: Batch) -> str:
        """Sixteen hexadecimal digits that name the content of a batch."""


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Sixteen hexadecimal digits of the shapes, types and bytes of ``tensors``."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()[:16]
