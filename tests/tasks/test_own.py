"""A user's own batches as a task."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nni_blockswap.errors import ConfigError, DataError
from nni_blockswap.metric import ACCURACY, Metric
from nni_blockswap.tasks.own import LOSS, OwnTask, is_sized, own_batches

IMAGES, LABELS = torch.arange(20.0).view(10, 2, 1, 1), torch.arange(10)
DATASET = TensorDataset(IMAGES, LABELS)


class Stream(IterableDataset[Any]):
    """Examples without a length."""

    def __iter__(self) -> Any:
        return iter(DATASET)


def batches(source: object, size: int = 4, *, training: bool = True) -> Any:
    return own_batches(source, "train", size, training=training)


@pytest.mark.parametrize(
    "source",
    [
        DATASET,
        DataLoader(DATASET, 4, drop_last=True),
        [(IMAGES[:4], LABELS[:4]), [IMAGES[4:8], LABELS[4:8]]],
        Stream(),
    ],
)
def test_all_kinds_of_sources_can_be_taken_again_and_again(source: object) -> None:
    found = batches(source)
    for _ in range(2):
        labels = torch.cat([labels for _, labels in found])
        assert len(set(labels.tolist())) == 8
    assert found.first()[0].shape == (4, 2, 1, 1)
    assert is_sized(found) == (not isinstance(source, Stream))


def test_a_dataset_is_shuffled_for_training_and_whole_for_judging() -> None:
    train, val = batches(TensorDataset(torch.zeros(64, 1), torch.arange(64)), 7), batches(DATASET, training=False)
    orders = [torch.cat([labels for _, labels in train]).tolist() for _ in range(2)]
    assert orders[0] != orders[1]
    assert [len(labels) for _, labels in val] == [4, 4, 2]


def test_batches_begin_with_the_first_one_asked_for_and_not_with_the_iterator() -> None:
    begun = []

    class Source:
        def __iter__(self) -> Any:
            begun.append(True)
            return iter([(IMAGES, LABELS)])

    iterator = iter(batches(Source()))
    assert not begun
    next(iterator)
    assert begun


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (iter([1]), "train can be iterated once, and every epoch takes it anew: give a list"),
        ((pair for pair in [(IMAGES, LABELS)]), "train can be iterated once"),
        (3, "train is a DataLoader, a Dataset or an iterable of batches, not a int"),
        (None, "train is a DataLoader, a Dataset or an iterable of batches, not a NoneType"),
    ],
)
def test_what_cannot_be_taken_again_is_refused(source: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        batches(source)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ([], "train yields no batch; a batch_size above the number of images"),
        (TensorDataset(IMAGES[:3], LABELS[:3]), "train yields no batch"),
        ([IMAGES], r"train yields batches \(images, labels\) of tensors, not a Tensor"),
        ([(IMAGES, [1])], "not tuple of Tensor, list"),
        ([{"image": IMAGES}], "not a dict"),
    ],
)
def test_batches_of_another_kind_are_refused(source: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        batches(source).first()


def test_loss_and_metric_are_the_users_or_cross_entropy_and_accuracy() -> None:
    source, outputs, labels = batches(DATASET), torch.eye(4), torch.tensor([0, 1, 2, 0])
    usual = OwnTask(source, source, 4)
    assert usual.figures(outputs, labels) == {"accuracy": 0.75}
    assert usual.criterion(outputs, labels).item() == pytest.approx(
        torch.nn.functional.cross_entropy(outputs, labels).item()
    )
    wrong = Metric("wrong ones", higher_is_better=False)
    own = OwnTask(source, source, 4, lambda o, y: o.sum(), wrong, lambda o, y: (o.argmax(1) != y).float().mean())
    assert own.figures(outputs, labels) == {"wrong_ones": 0.25}
    assert own.criterion(outputs, labels).item() == 4
    assert own.loss(torch.nn.Identity(), (outputs, labels)).item() == 4
    assert OwnTask(source, source, 4, lambda o, y: o.sum(), LOSS).figures(outputs, labels) == {}
    assert usual.metric == ACCURACY


def test_answers_at_every_position_are_judged_at_every_position() -> None:
    source = batches(DATASET)
    outputs = torch.zeros(1, 3, 2, 2)
    outputs[0, 1] = 1.0
    labels = torch.tensor([[[1, 1], [2, 1]]])
    assert OwnTask(source, source, 3).figures(outputs, labels) == {"accuracy": 0.75}
