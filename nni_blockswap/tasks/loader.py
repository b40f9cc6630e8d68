"""Somebody's own batches of images and labels as a task, with a loss and a metric of their own."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from nni_blockswap.blocks.digest import digest_of_function
from nni_blockswap.draws import Draws, samplers
from nni_blockswap.errors import DataError, TooFewError, first_line
from nni_blockswap.metric import ACCURACY, UNKNOWN, Metric
from nni_blockswap.seeds import derived_seed
from nni_blockswap.tasks.base import fingerprint
from nni_blockswap.tasks.classification import Classification, Labelled

Loss = Callable[[Any, Any], Tensor]
"""From a network's outputs and the labels of a batch to a scalar, the mean over the batch."""

Judge = Callable[[Any, Any], Any]
"""The same for a metric, as a number or a tensor."""

BY_LOSS = Metric("loss", higher_is_better=False, is_share=False)
"""What is judged where nothing else is: the loss itself."""


class OwnBatches:
    """Batches (images (N, C, H, W), labels), each looked at.

    They begin when the first is asked for, not with the iterator: by then an epoch has set its seeds.

    Args:
        batches: what gives them.
        name: what the user calls it.
        part: which of how many equal parts of each batch is taken, from 0.
    """

    def __init__(self, batches: Iterable[Any], name: str, part: tuple[int, int] = (0, 1)) -> None:
        self.batches = batches
        self.name = name
        self._part = part

    def __iter__(self) -> Iterator[Labelled]:
        for batch in self.batches:
            images = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else None
            if not isinstance(images, Tensor) or images.dim() != 4:
                raise DataError(
                    f"a batch is (images (N, C, H, W), labels), not a {type(batch).__name__} like one of {self.name}."
                )
            labels = self._labels(batch[1])
            if labels.shape[:1] != images.shape[:1]:
                raise DataError(
                    f"a batch has a label an image; one of {self.name} has {len(images)} images and labels of shape "
                    f"{tuple(labels.shape)}."
                )
            yield self._own(images, labels)

    def shared(self, number: int, count: int) -> "OwnBatches":
        """What process ``number`` of ``count`` takes of each batch; what is over of one is left out.

        Of a batch with fewer images than processes, such as the last one, each takes all: the mean of their gradients
        is that of the batch. A loader whose sampler is distributed gives each process images of its own already.
        """
        if any(isinstance(one, DistributedSampler) for one in samplers(self.batches)):
            return self
        return OwnBatches(self.batches, self.name, (number, count))

    def _own(self, images: Tensor, labels: Tensor) -> Labelled:
        number, count = self._part
        whole = len(images) // count * count
        return (images[number:whole:count], labels[number:whole:count]) if whole else (images, labels)

    def _labels(self, given: Any) -> Tensor:
        try:
            return torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"labels are a tensor, or numbers that make one; those of {self.name} are a {type(given).__name__} "
                f"that makes none: {first_line(error)}."
            ) from error

    def __len__(self) -> int:
        """As many as ``batches`` says; TypeError where it does not."""
        return len(self.batches)  # type: ignore[arg-type]  # which raises that TypeError

    def first(self) -> Labelled:
        """The first batch. Raises DataError where there is none."""
        batch = next(iter(self), None)
        if batch is None:
            raise DataError(f"{self.name} gives no batch; is batch_size above the number of images?")
        return batch


class LoaderTask(Classification):
    """A task on batches that are taken as they come: normalised, augmented, in the size that they have.

    Args:
        train: a DataLoader, any iterable of batches, or a Dataset of single images; a search takes its minibatches
            from there.
        val: the same, to be judged on; a search needs none.
    """

    name = "loader"
    knows_all_classes = False
    """It has seen one batch."""
    judge: Judge | None = None
    """How the metric is computed where it is neither accuracy nor the loss."""
    _is_repeatable = False
    """Whether two passes were seen to begin alike."""

    def __init__(self, train: Any, val: Any = None) -> None:
        self.train, self.val = train, val
        _, labels = next(self._batches(1, seed=0), (None, None))
        if labels is None:
            raise DataError("data gives no batch.")
        self.num_classes = int(labels.max()) + 1 if _are_classes(labels) else 0  # as far as the first batch tells
        if self.judge is None and self.metric in (ACCURACY, UNKNOWN):
            is_own = type(self).figures is not LoaderTask.figures
            self.metric = ACCURACY if is_own else usual_metric(labels)

    def train_loader(self, batch_size: int, *, seed: int = 0, workers: int = 0) -> Any:
        """Batches to learn from; a Dataset's are shuffled, the last, incomplete one dropped."""
        return own_batches(self.train, "train", batch_size, shuffle=True, drop_last=True, workers=workers)

    def val_loader(self, batch_size: int, *, workers: int = 0) -> Any:
        """Batches to be judged on, in order."""
        return own_batches(self.val, "val", batch_size, workers=workers)

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Labelled:
        """The ``index``-th ``batch_size`` images of ``train``, in the order that ``seed`` draws where it shuffles.

        Raises:
            TooFewError: there are fewer.
            DataError: a batch is not made of images and labels.
        """
        (found,) = self.between(index, index + 1, batch_size, seed=seed)
        return found

    def between(self, begin: int, end: int, batch_size: int, *, seed: int) -> list[Labelled]:
        """From the ``begin``-th until the ``end``-th, each as ``minibatch`` gives it, in one pass over ``train``."""
        found = list(islice(self._whole(batch_size, seed), begin, end))
        if len(found) < end - begin:
            given = sum(len(images) for images, _ in self._batches(batch_size, seed))
            raise TooFewError(
                f"{end} minibatch(es) of {batch_size} need {batch_size * end} images; the loader has {given}: lower "
                "batch_size or the number of minibatches."
            )
        return found

    def minibatches(self, batch_size: int, *, seed: int) -> Iterator[Labelled]:
        """All whole minibatches in turn, each as ``minibatch`` gives it, in one pass over ``train``.

        Raises:
            DataError: another pass gives others.
        """
        if not self._is_repeatable:
            first, again = (fingerprint(next(self._batches(batch_size, seed), ())) for _ in range(2))
            if first != again:
                raise DataError(
                    "data begins with another batch in each pass, and one has to know which images are which: let it "
                    "draw from the global generators of torch, numpy and random, or from its loader's or sampler's "
                    "own torch.Generator, which are set before each pass."
                )
            self._is_repeatable = True
        return self._whole(batch_size, seed)

    def _whole(self, batch_size: int, seed: int) -> Iterator[Labelled]:
        images, labels = list[Tensor](), list[Tensor]()
        for some, of_some in self._batches(batch_size, seed):
            images.append(some)
            labels.append(of_some)
            if sum(map(len, images)) >= batch_size:
                all_images, all_labels = torch.cat(images), torch.cat(labels)
                whole = len(all_images) // batch_size * batch_size
                for start in range(0, whole, batch_size):
                    chosen = slice(start, start + batch_size)
                    yield all_images[chosen], all_labels[chosen]
                images, labels = [all_images[whole:]], [all_labels[whole:]]

    def _batches(self, batch_size: int, seed: int) -> Iterator[Labelled]:
        """The batches that ``train`` gives under the random numbers of ``seed``, whatever is drawn in between."""
        source = own_batches(_unshared(self.train), "data", batch_size, shuffle=True)
        batches, draws = iter(source), Draws(source.batches, derived_seed(seed, 0))
        while True:
            with draws.drawn():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @property
    def sampler_with_replacement(self) -> str | None:
        """The class of what draws images of ``train`` more than once; None where each comes once a pass."""
        batches = self.train.batches if isinstance(self.train, OwnBatches) else self.train
        drawn = (one for one in samplers(batches) if getattr(one, "replacement", False))
        return next((type(one).__name__ for one in drawn), None)

    def prepare(self, batch: Labelled, *, train: bool, generator: torch.Generator | None = None) -> Labelled:
        """The batch as it is."""
        return batch

    def figures(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The user's metric, or accuracy; nothing beside the loss where that is the metric."""
        if self.metric == BY_LOSS:
            return {}
        if self.judge is None:
            return super().figures(outputs, labels)
        value = torch.as_tensor(self.judge(outputs, labels), dtype=torch.float32)
        if value.numel() != 1:
            raise DataError(
                f"the metric has to give one number, a mean over the batch, not a tensor of shape {tuple(value.shape)}."
            )
        return {self.metric.key: value.reshape(())}

    def training_figures(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Accuracy, unless the user has a metric."""
        return super().training_figures(outputs, labels) if self.judge is None else {}


class LossTask(LoaderTask):
    """The same with a loss of the user's own: of the network's outputs and the labels.

    Judged, where nothing else is said, as ``usual_metric`` has it. A metric of one's own is a pair of class attributes:
    ``metric``, and ``judge`` as a ``staticmethod``.
    """

    loss_name = "own_loss"
    metric = UNKNOWN
    """Of the class: the labels decide."""

    def __init__(self, train: Any, loss: Loss, val: Any = None) -> None:
        super().__init__(train, val)
        self._loss = loss

    @cached_property
    def loss_digest(self) -> str:
        """What tells the loss from others. Only a search asks for it; it takes long where a loss holds much."""
        return digest_of_function(self._loss)

    def criterion(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """A scalar, a mean over the batch. Raises DataError where it is none."""
        if isinstance(self._loss, nn.Module):
            self._loss.to(labels.device)  # it may hold weights of classes
        loss: Any = self._loss(outputs, labels)
        if not isinstance(loss, Tensor) or loss.dim():
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise DataError(f"the loss has to give a scalar tensor, a mean over the batch, not {given}.")
        return loss

    def loss(self, network: nn.Module, batch: Labelled) -> Tensor:
        """``criterion`` of the network's answers, as they are."""
        return self.criterion(network(batch[0]), batch[1])


def own_batches(
    source: Any, name: str, batch_size: int, *, shuffle: bool = False, drop_last: bool = False, workers: int = 0
) -> OwnBatches:
    """Batches of ``source``, which the user calls ``name``: a DataLoader, any iterable of batches, or a Dataset.

    Args:
        batch_size, shuffle, drop_last, workers: for a Dataset alone; others have all that already.

    Raises:
        DataError: it cannot be iterated again and again.
    """
    if isinstance(source, OwnBatches):
        return source
    if isinstance(source, Dataset):
        shuffle = shuffle and not isinstance(source, IterableDataset)
        source = DataLoader(source, batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=workers)
    if not isinstance(source, Iterable) or isinstance(source, Iterator):
        raise DataError(
            f"{name} is a DataLoader, a Dataset, or batches (images, labels) that can be iterated again, not a "
            f"{type(source).__name__}."
        )
    return OwnBatches(source, name)


def _unshared(source: Any) -> Any:
    """A DataLoader whose passes are its own: with ``persistent_workers`` they share one iterator, and processes."""
    if not isinstance(source, DataLoader) or not source.persistent_workers:
        return source
    apart = copy.copy(source)
    vars(apart).update(persistent_workers=False, _iterator=None)  # which a DataLoader lets nobody set
    return apart


def is_sized(batches: Any) -> bool:
    """Whether it knows how many there are."""
    try:
        return isinstance(batches, Sized) and len(batches) >= 0
    except (TypeError, NotImplementedError):  # the second is what older datasets without a length raise
        return False


def usual_metric(labels: Tensor, outputs: Tensor | None = None) -> Metric:
    """Accuracy where labels are classes, else the loss.

    Args:
        labels: classes are whole numbers, one an image (N,) or one a position (N, H, W).
        outputs: the network's, where they are known: (N, classes) or (N, classes, ...), a label for each.
    """
    if labels.is_floating_point():
        return BY_LOSS
    if outputs is None:
        return ACCURACY if labels.dim() != 2 else BY_LOSS
    of_classes = outputs.dim() > 1 and outputs.shape[1] > 1 and labels.shape[1:] == outputs.shape[2:]
    return ACCURACY if of_classes else BY_LOSS


def _are_classes(labels: Tensor) -> bool:
    return labels.dim() == 1 and not labels.is_floating_point()
