"""Somebody's own batches as a task, to learn from and to be judged on; what a search takes: tests/test_own.py."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from nni_blockswap.errors import DataError
from nni_blockswap.metric import ACCURACY, UNKNOWN, Metric
from nni_blockswap.tasks import loader
from nni_blockswap.tasks.classification import Classification
from nni_blockswap.tasks.loader import BY_LOSS, LoaderTask, LossTask, is_sized, own_batches, usual_metric

IMAGES, LABELS = torch.arange(20.0).view(10, 2, 1, 1), torch.arange(10)
DATASET = TensorDataset(IMAGES, LABELS)


class Stream(IterableDataset[Any]):
    """Examples without a length."""

    def __iter__(self) -> Any:
        return iter(DATASET)


class Endless(Stream):
    """The same, which says so."""

    def __len__(self) -> int:
        raise NotImplementedError


def batches(source: object) -> Any:
    return own_batches(source, "train", 4, shuffle=True, drop_last=True)


@pytest.mark.parametrize(
    "source",
    [
        DATASET,
        DataLoader(DATASET, 4, drop_last=True),
        [(IMAGES[:4], LABELS[:4]), [IMAGES[4:8], LABELS[4:8].tolist()]],
        Stream(),
        Endless(),
    ],
)
def test_all_kinds_of_sources_can_be_taken_again_and_again(source: object) -> None:
    found = batches(source)
    for _ in range(2):
        labels = torch.cat([labels for _, labels in found])
        assert len(set(labels.tolist())) == 8
    assert found.first()[0].shape == (4, 2, 1, 1)
    assert is_sized(found) == (not isinstance(source, Stream))


def test_processes_take_equal_parts_of_each_batch() -> None:
    found = own_batches(DataLoader(DATASET, 5), "train", 5)
    parts = [[labels.tolist() for _, labels in found.shared(number, 2)] for number in range(2)]
    assert parts == [[[0, 2], [5, 7]], [[1, 3], [6, 8]]]
    assert len(found.shared(1, 2)) == 2


def test_of_a_batch_with_fewer_images_than_processes_each_takes_all() -> None:
    found = own_batches(DataLoader(DATASET, 9), "train", 9)
    parts = [[labels.tolist() for _, labels in found.shared(number, 2)] for number in range(2)]
    assert parts == [[[0, 2, 4, 6], [9]], [[1, 3, 5, 7], [9]]]


def test_what_a_distributed_sampler_has_shared_out_is_not_shared_again() -> None:
    loaders = [DataLoader(DATASET, 5, sampler=DistributedSampler(DATASET, 2, rank, shuffle=False)) for rank in range(2)]
    shared = [own_batches(one, "train", 5).shared(rank, 2) for rank, one in enumerate(loaders)]
    assert [[labels.tolist() for _, labels in one] for one in shared] == [[[0, 2, 4, 6, 8]], [[1, 3, 5, 7, 9]]]


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


class Squared(LossTask):
    metric = Metric("squared error", higher_is_better=False, is_share=False)
    judge = staticmethod(torch.nn.functional.mse_loss)


@pytest.mark.parametrize(
    ("labels", "metric"),
    [
        (LABELS, ACCURACY),
        (LABELS.view(10, 1, 1), ACCURACY),  # a class at every position
        (LABELS.float(), BY_LOSS),
        (LABELS.float().view(10, 1), BY_LOSS),
        (LABELS.view(10, 1), BY_LOSS),
    ],
)
def test_a_task_is_judged_by_accuracy_where_labels_are_classes_and_else_by_its_loss(
    labels: torch.Tensor, metric: Metric
) -> None:
    data, loss = TensorDataset(IMAGES, labels), torch.nn.functional.mse_loss
    assert LossTask(data, loss, data).metric == LoaderTask(data).metric == metric
    task = Squared(data, loss, data)
    assert task.metric == Squared.metric
    assert task.figures(torch.ones(4, 1), torch.zeros(4, 1)) == {"squared_error": 1.0}
    assert LossTask.metric == UNKNOWN  # for whoever asks before there are labels


class ManyLabels(LoaderTask):
    """A yes or no for each of several things, judged by the share of right ones."""

    def figures(self, outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self.metric.key: ((outputs > 0) == labels).float().mean()}


def test_figures_of_ones_own_are_what_a_task_is_judged_by() -> None:
    task = ManyLabels(TensorDataset(IMAGES, torch.ones(10, 3)))
    assert task.metric == ACCURACY
    assert task.figures(torch.tensor([[1.0, -1.0]]), torch.ones(1, 2)) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("outputs", "labels", "metric"),
    [
        ((4, 3), torch.arange(4), ACCURACY),
        ((4, 3, 2), torch.ones(4, 2).long(), ACCURACY),
        ((4, 1), torch.arange(4), BY_LOSS),  # one number an image
        ((4, 3), torch.ones(4, 3).long(), BY_LOSS),  # a yes or no for each of three
        ((4,), torch.arange(4), BY_LOSS),
    ],
)
def test_a_networks_outputs_say_whether_whole_numbers_are_their_classes(
    outputs: tuple[int, ...], labels: torch.Tensor, metric: Metric
) -> None:
    assert usual_metric(labels, torch.zeros(outputs)) == metric


def test_a_search_can_tell_a_loss_of_ones_own() -> None:
    """The fast ways of scoring are for cross-entropy alone."""
    assert LoaderTask.loss is Classification.loss
    assert LossTask.loss is not Classification.loss


def test_a_loss_is_digested_only_when_a_search_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[object] = []
    monkeypatch.setattr(loader, "digest_of_function", lambda loss: digested.append(loss) or "digest")
    task, other = LossTask(DATASET, torch.dist), LossTask(DATASET, torch.dot)
    assert not digested
    assert task.loss_digest == task.loss_digest == other.loss_digest
    assert digested == [torch.dist, torch.dot]


def test_answers_at_every_position_are_judged_at_every_position() -> None:
    outputs = torch.zeros(1, 3, 2, 2)
    outputs[0, 1] = 1.0
    task = LoaderTask(DATASET)
    task.num_classes = 3
    assert task.figures(outputs, torch.tensor([[[1, 1], [2, 1]]])) == {"accuracy": 0.75}


NUMBERED = TensorDataset(torch.arange(40.0).view(40, 1, 1, 1), torch.arange(40))


class Noisy(Dataset[Any]):
    """Images of noise that ``draw`` gives, on top of their number."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 1, 1), index + 0.5 * self.draw()), 0


def own() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def shuffled(draw: Callable[[], float]) -> DataLoader[Any]:
    return DataLoader(Noisy(draw), 4, shuffle=True, generator=own())


LOADERS = {
    "a generator": DataLoader(NUMBERED, 4, shuffle=True, generator=own()),
    "a sampler's": DataLoader(NUMBERED, 4, sampler=SubsetRandomSampler(range(8, 40), generator=own())),
    "weights": DataLoader(NUMBERED, 4, sampler=WeightedRandomSampler([1.0] * 40, 40, generator=own())),
    "a batch sampler's": DataLoader(
        NUMBERED, batch_sampler=BatchSampler(RandomSampler(NUMBERED, generator=own()), 4, drop_last=False)
    ),
    "no generator": DataLoader(NUMBERED, 4, shuffle=True),
    "torch": shuffled(lambda: float(torch.rand(()))),
    "numpy": shuffled(lambda: float(np.random.rand())),  # noqa: NPY002  # as users do
    "random": shuffled(random.random),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_every_pass_gives_the_same_batches_whatever_was_drawn_before_and_in_between(loader: DataLoader[Any]) -> None:
    def pass_over(seed: int) -> list[float]:
        found = []
        for images, _ in task.minibatches(8, seed=seed):
            found += images.flatten().tolist()
            torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002
        return found

    task = LoaderTask(loader)
    first = pass_over(3)
    other, *_ = task.minibatches(8, seed=3)  # a pass that begins within another
    assert other[0].flatten().tolist() == first[:8]
    assert pass_over(3) == first
    assert task.minibatch(8, seed=3, index=2)[0].flatten().tolist() == first[16:24]
    assert pass_over(4) != first
    assert len(first) >= 32


def test_passes_leave_all_generators_as_they_were() -> None:
    def numbers() -> list[float]:
        loader_own = torch.rand((), generator=loader.generator)
        return [float(torch.rand(())), float(loader_own), np.random.rand(), random.random()]  # noqa: NPY002

    def begin() -> None:
        torch.manual_seed(5), np.random.seed(5), random.seed(5), loader.generator.manual_seed(5)  # noqa: NPY002

    loader: Any = shuffled(random.random)
    task = LoaderTask(loader)
    begin()
    expected = numbers()
    begin()
    list(task.minibatches(8, seed=0))
    assert numbers() == expected


def test_a_list_is_a_sampler_that_draws_nothing() -> None:
    task = LoaderTask(DataLoader(NUMBERED, 4, sampler=[5, 3, 8, 1]))
    assert [labels.tolist() for _, labels in task.minibatches(4, seed=0)] == [[5, 3, 8, 1]]


@pytest.mark.parametrize("draw", [np.random.default_rng(0).random, random.Random(0).random])
def test_a_loader_whose_passes_cannot_be_made_alike_is_refused_where_they_have_to_be(draw: Any) -> None:
    task = LoaderTask(shuffled(draw))
    with pytest.raises(
        DataError, match=r"data begins with another batch in each pass, .*: let it draw from the global"
    ):
        task.minibatches(8, seed=0)
    task.minibatch(8, seed=0)  # a search takes one, once
