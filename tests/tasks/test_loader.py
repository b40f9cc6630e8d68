"""Somebody's own batches as a task, to learn from and to be judged on; what a search takes: tests/test_own.py."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nni_blockswap.errors import DataError
from nni_blockswap.metric import ACCURACY, Metric
from nni_blockswap.tasks.classification import Classification
from nni_blockswap.tasks.loader import BY_LOSS, LoaderTask, LossTask, is_sized, own_batches

IMAGES, LABELS = torch.arange(20.0).view(10, 2, 1, 1), torch.arange(10)
DATASET = TensorDataset(IMAGES, LABELS)


class Stream(IterableDataset[Any]):
    """Examples without a length."""

    def __iter__(self) -> Any:
        return iter(DATASET)


def batches(source: object) -> Any:
    return own_batches(source, "train", 4, shuffle=True, drop_last=True)


@pytest.mark.parametrize(
    "source",
    [
        DATASET,
        DataLoader(DATASET, 4, drop_last=True),
        [(IMAGES[:4], LABELS[:4]), [IMAGES[4:8], LABELS[4:8].tolist()]],
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
    numbered = TensorDataset(torch.zeros(64, 1, 1, 1), torch.arange(64))
    task = LoaderTask(numbered, DATASET)
    orders = [torch.cat([labels for _, labels in task.train_loader(7)]).tolist() for _ in range(2)]
    assert orders[0] != orders[1]
    assert [len(order) for order in orders] == [63, 63]
    assert torch.cat([labels for _, labels in task.val_loader(4)]).tolist() == list(range(10))


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


@pytest.mark.parametrize("source", [iter([1]), (pair for pair in [(IMAGES, LABELS)]), 3, None])
def test_what_cannot_be_taken_again_is_refused(source: object) -> None:
    with pytest.raises(DataError, match=r"train is a DataLoader, a Dataset, or batches .* iterated again, not a \w+\."):
        batches(source)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ([], "train gives no batch; is batch_size above the number of images"),
        (TensorDataset(IMAGES[:3], LABELS[:3]), "train gives no batch"),
        ([IMAGES], r"a batch is \(images \(N, C, H, W\), labels\), not a Tensor like one of train"),
        ([(IMAGES[0], LABELS)], "not a tuple like one of train"),
        ([{"image": IMAGES}], "not a dict like one of train"),
    ],
)
def test_batches_of_another_kind_are_refused(source: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        batches(source).first()


def test_loss_and_metric_are_the_users_or_cross_entropy_and_accuracy() -> None:
    outputs, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    usual = LoaderTask(DATASET)
    usual.num_classes = 4
    assert usual.figures(outputs, labels) == {"accuracy": 0.75}
    expected = torch.nn.functional.cross_entropy(outputs, labels).item()
    assert usual.criterion(outputs, labels).item() == pytest.approx(expected)
    assert usual.metric == ACCURACY
    own = LossTask(DATASET, lambda outputs, labels: outputs.sum())
    own.metric = Metric("wrong ones", higher_is_better=False)
    own.judge = lambda outputs, labels: (outputs.argmax(1) != labels).float().mean()
    assert own.figures(outputs, labels) == {"wrong_ones": 0.25}
    assert own.criterion(outputs, labels).item() == own.loss(torch.nn.Identity(), (outputs, labels)).item() == 4
    own.metric = BY_LOSS
    assert own.figures(outputs, labels) == {}


def test_a_search_can_tell_a_loss_of_ones_own() -> None:
    """The fast ways of scoring are for cross-entropy alone."""
    assert LoaderTask.loss is Classification.loss
    assert LossTask.loss is not Classification.loss


def test_answers_at_every_position_are_judged_at_every_position() -> None:
    outputs = torch.zeros(1, 3, 2, 2)
    outputs[0, 1] = 1.0
    task = LoaderTask(DATASET)
    task.num_classes = 3
    assert task.figures(outputs, torch.tensor([[[1, 1], [2, 1]]])) == {"accuracy": 0.75}
