"""A user's own batches as a task: whatever yields (images, labels) again and again, with a loss and a metric."""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nni_blockswap.errors import ConfigError, DataError
from nni_blockswap.metric import ACCURACY, Metric
from nni_blockswap.tasks.classification import Classification, Labelled

Judge = Callable[[Tensor, Tensor], Any]
"""From a network's outputs and the labels of a batch to a number, the mean over the batch."""

LOSS = Metric("loss", higher_is_better=False, is_share=False)


class OwnBatches:
    """Batches that begin when the first is asked for, not with the iterator: by then an epoch has set its seeds.

    Args:
        batches: what can be iterated again and again.
        name: what the user calls it.
    """

    def __init__(self, batches: Iterable[Any], name: str) -> None:
        self.batches = batches
        self.name = name

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches

    def __len__(self) -> int:
        """As many as ``batches`` says; TypeError where it does not."""
        return len(self.batches)  # type: ignore[arg-type]  # which raises that TypeError

    def first(self) -> Labelled:
        """Its first batch.

        Raises:
            DataError: there is none, or it is not a pair of tensors.
        """
        batch = next(iter(self), None)
        if batch is None:
            raise DataError(f"{self.name} yields no batch; a batch_size above the number of images would be a reason.")
        if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(one, Tensor) for one in batch)):
            raise DataError(f"{self.name} yields batches (images, labels) of tensors, not {_described(batch)}.")
        return batch[0], batch[1]


class OwnTask(Classification):
    """A task over a user's own batches, which are taken as they come: normalised, augmented, of their own size.

    Args:
        train, val: batches, see ``own_batches``.
        classes: outputs of the network.
        loss: of outputs and labels; None is cross-entropy.
        metric: what is judged; ``LOSS`` where that is the loss itself.
        judge: the metric, of outputs and labels; None is accuracy.
    """

    name = "your own data"

    def __init__(
        self,
        train: OwnBatches,
        val: OwnBatches,
        classes: int,
        loss: Judge | None = None,
        metric: Metric = ACCURACY,
        judge: Judge | None = None,
    ) -> None:
        self.num_classes = classes
        self.train, self.val = train, val
        self.metric = metric
        self._loss, self._judge = loss, judge
        self.loss_name = "cross_entropy" if loss is None else "own_loss"

    def train_loader(self, batch_size: int, *, seed: int = 0, workers: int = 0) -> Any:
        """The user's; the arguments are for other tasks."""
        return self.train

    def val_loader(self, batch_size: int, *, workers: int = 0) -> Any:
        """The user's."""
        return self.val

    def prepare(self, batch: Labelled, *, train: bool, generator: torch.Generator | None = None) -> Labelled:
        """The batch as it is."""
        images, labels = batch
        return images, labels

    def criterion(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """The user's loss, or cross-entropy."""
        if self._loss is None:
            return super().criterion(outputs, labels, smoothing)
        found: Tensor = self._loss(outputs, labels)
        return found

    def figures(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The user's metric, or accuracy; nothing where the loss is the metric."""
        if self.metric == LOSS:
            return {}
        if self._judge is None:
            return super().figures(outputs, labels)
        return {self.metric.key: torch.as_tensor(self._judge(outputs, labels), dtype=torch.float32)}


def own_batches(source: Any, name: str, batch_size: int, *, training: bool, workers: int = 0) -> OwnBatches:
    """Batches of ``source``: a DataLoader, any iterable of batches, or a torch Dataset.

    Args:
        batch_size, workers: for a Dataset alone, which has no batches yet.
        training: shuffle a Dataset's examples, and drop the last, incomplete batch.

    Raises:
        ConfigError: it can be iterated only once or not at all.
    """
    if isinstance(source, Dataset):
        shuffle = training and not isinstance(source, IterableDataset)
        loader = DataLoader(source, batch_size, shuffle=shuffle, drop_last=training, num_workers=workers)
        return OwnBatches(loader, name)
    if not isinstance(source, Iterable):
        raise ConfigError(f"{name} is a DataLoader, a Dataset or an iterable of batches, not {_described(source)}.")
    if isinstance(source, Iterator):
        raise ConfigError(
            f"{name} can be iterated once, and every epoch takes it anew: give a list, a DataLoader or a Dataset."
        )
    return OwnBatches(source, name)


def is_sized(batches: Any) -> bool:
    """Whether it knows how many there are."""
    try:
        return isinstance(batches, Sized) and len(batches) >= 0
    except TypeError:
        return False


def _described(thing: object) -> str:
    if isinstance(thing, list | tuple):
        return f"{type(thing).__name__} of {', '.join(type(one).__name__ for one in thing[:3]) or 'nothing'}"
    return f"a {type(thing).__name__}"
