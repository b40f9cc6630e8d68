"""A task over somebody's own batches of images and labels, with a loss of their own."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nni_blockswap.errors import DataError
from nni_blockswap.seeds import derived_seed
from nni_blockswap.tasks.classification import Classification, Labelled

Loss = Callable[[Any, Any], Tensor]


class LoaderTask(Classification):
    """Minibatches for a search, from whatever gives (images, labels).

    Args:
        source: a DataLoader, any iterable of batches (images (N, C, H, W), labels), or a Dataset of single ones. Images
            are as the network takes them: normalised, and augmented if the source does so.
    """

    name = "loader"

    def __init__(self, source: Any) -> None:
        self._source = source
        _, labels = self._first(1, seed=0)
        self.num_classes = int(labels.max()) + 1 if _are_classes(labels) else 0  # as far as the first batch tells

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Labelled:
        """The ``index``-th so many images that the source gives, in the order that ``seed`` makes, where it shuffles.

        Raises:
            DataError: there are fewer, or a batch is not made of images and labels.
        """
        wanted = batch_size * (index + 1)
        images, labels = self._first(wanted, seed)
        if len(images) < wanted:
            raise DataError(
                f"{index + 1} minibatch(es) of {batch_size} need {wanted} images; the loader has {len(images)}: lower "
                "batch_size or the number of minibatches."
            )
        chosen = slice(batch_size * index, wanted)
        return images[chosen], labels[chosen]

    def _first(self, count: int, seed: int) -> Labelled:
        """The first batches that hold ``count`` images between them, or all there are."""
        images, labels = list[Tensor](), list[Tensor]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, 0))
            for batch in _batches(self._source, count):
                images.append(_checked(batch)[0])
                labels.append(torch.as_tensor(batch[1]))
                if sum(map(len, images)) >= count:
                    break
        if not images:
            raise DataError("the loader gives no batch.")
        return torch.cat(images), torch.cat(labels)


class LossTask(LoaderTask):
    """The same with a loss of the user's own: of the network's outputs and the labels."""

    def __init__(self, source: Any, loss: Loss) -> None:
        super().__init__(source)
        self._loss = loss

    def loss(self, network: nn.Module, batch: Labelled) -> Tensor:
        """A scalar, a mean over the batch. Raises DataError where it is none."""
        loss: Any = self._loss(network(batch[0]), batch[1])
        if not isinstance(loss, Tensor) or loss.dim():
            raise DataError("the loss has to give a scalar tensor, a mean over the batch.")
        return loss


def _batches(source: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(source, Dataset):
        source = DataLoader(source, batch_size, shuffle=True)
    iterable: Any = source
    if not hasattr(iterable, "__iter__") or isinstance(iterable, Iterator):
        raise DataError("data is a DataLoader, a Dataset, or batches (images, labels) that can be iterated again.")
    yield from iterable


def _checked(batch: Any) -> tuple[Tensor, Any]:
    images = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise DataError(f"a batch is (images (N, C, H, W), labels), not a {type(batch).__name__} like this one.")
    return images, batch[1]


def _are_classes(labels: Tensor) -> bool:
    return labels.dim() == 1 and not labels.is_floating_point()
