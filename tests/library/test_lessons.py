"""Which images are learned from, and which are not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler

from nni_blockswap.errors import DataError
from nni_blockswap.library.lessons import Lessons
from nni_blockswap.tasks.classification import Classification, Labelled, minibatch_indices
from nni_blockswap.tasks.loader import LoaderTask


class Numbers(Classification):
    """Images that hold their own number, of a set of ``size``."""

    name, num_classes = "numbers", 2

    def __init__(self, size: int) -> None:
        self.size = size

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Labelled:
        chosen = torch.tensor(minibatch_indices(self.size, batch_size, seed, index))
        return chosen, chosen


@pytest.mark.parametrize(("size", "held_out", "batches"), [(1000, 40, 4), (1000, 31, 4), (100, 1000, 2), (25, 40, 1)])
def test_held_out_images_are_never_learned_from_and_all_others_come_in_turn(
    size: int, held_out: int, batches: int
) -> None:
    lessons = Lessons(Numbers(size), 10, held_out, seed=3)
    measured = torch.cat([batch[0] for batch in lessons.measured()])
    assert len(measured) == 10 * batches
    per_pass = size // 10 - batches
    learned = [lessons.learned(step)[0] for step in range(2 * per_pass)]
    assert not set(measured.tolist()) & set(torch.cat(learned).tolist())
    assert len(set(torch.cat(learned[:per_pass]).tolist())) == 10 * per_pass
    assert all(torch.equal(one, other) for one, other in zip(learned, learned[per_pass:], strict=False))


def test_a_step_has_the_same_images_whatever_was_asked_before() -> None:
    asked = [Lessons(Numbers(300), 10, 20, seed=0).learned(step)[0] for step in (40, 3, 27, 28, 55, 83)]
    lessons = Lessons(Numbers(300), 10, 20, seed=0)
    in_turn = [lessons.learned(step)[0] for step in range(84)]
    assert all(torch.equal(one, in_turn[step]) for one, step in zip(asked, (40, 3, 27, 28, 55, 83), strict=True))


@pytest.mark.parametrize("size", [9, 19])
def test_a_set_without_two_minibatches_is_refused(size: int) -> None:
    with pytest.raises(DataError, match="minibatch"):
        Lessons(Numbers(size), 10, 10, seed=0)


def test_the_number_of_minibatches_is_found_exactly() -> None:
    for size in range(20, 700, 7):
        lessons = Lessons(Numbers(size), 10, 10_000, seed=0)
        last = size // 10 - lessons.held_out
        np.testing.assert_array_equal(lessons.learned(0)[0], lessons.learned(last)[0])


def test_an_image_that_cannot_be_read_does_not_end_the_set() -> None:
    class Broken(Numbers):
        def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Labelled:
            if index == 9:
                raise DataError("the image '30.jpg' cannot be read.")
            return super().minibatch(batch_size, seed=seed, index=index, augment=augment)

    with pytest.raises(DataError, match=r"30\.jpg"):
        Lessons(Broken(100), 4, 8, seed=0)  # counts as far as ten minibatches


def test_a_loader_is_not_read_from_the_beginning_for_each_step() -> None:
    class Loader:
        passes = 0

        def __iter__(self) -> Iterator[Labelled]:
            Loader.passes += 1
            return ((torch.full((5, 1, 1, 1), float(n)), torch.tensor([0, 1, 0, 1, 0])) for n in range(40))

    task, before = LoaderTask(Loader()), Loader.passes
    lessons = Lessons(task, 10, 20, seed=0)
    assert Loader.passes == before + 3  # whether two begin alike, and how many there are
    before = Loader.passes
    held_out = torch.cat([images for images, _ in lessons.measured()]).unique().tolist()
    learned = torch.cat([lessons.learned(step)[0] for step in range(18)]).unique().tolist()
    assert Loader.passes <= before + 3  # once more to count how many there are, and to come back
    assert held_out == [0.0, 1.0, 2.0, 3.0]
    assert learned == [float(n) for n in range(4, 40)]
    assert torch.equal(lessons.learned(18)[0], lessons.learned(0)[0])


def test_a_shuffling_loaders_held_out_images_are_never_learned_from() -> None:
    numbered = TensorDataset(torch.arange(200.0).view(200, 1, 1, 1), torch.arange(200) % 2)
    order = torch.Generator().manual_seed(0)
    lessons = Lessons(LoaderTask(DataLoader(numbered, 10, shuffle=True, generator=order)), 10, 30, seed=0)
    measured = [torch.cat([images for images, _ in lessons.measured()]).flatten().tolist()]
    learned = torch.cat([lessons.learned(step)[0] for step in range(20)]).flatten().tolist()
    measured.append(torch.cat([images for images, _ in lessons.measured()]).flatten().tolist())
    assert measured[0] == measured[1]
    assert not set(measured[0]) & set(learned)


NUMBERED = TensorDataset(torch.arange(200.0).view(200, 1, 1, 1), torch.arange(200) % 2)


@pytest.mark.parametrize(
    "drawn",
    [
        {"sampler": WeightedRandomSampler(range(200), 200), "batch_size": 10},
        {"sampler": RandomSampler(NUMBERED, replacement=True), "batch_size": 10},
        {"batch_sampler": BatchSampler(WeightedRandomSampler(range(200), 200), 10, drop_last=True)},
    ],
)
def test_a_sampler_that_draws_images_again_is_refused(drawn: dict[str, Any]) -> None:
    """Held-out ones would be learned from."""
    task = LoaderTask(DataLoader(NUMBERED, **drawn))
    with pytest.raises(DataError, match=r"the \w*RandomSampler of data draws images more than once"):
        Lessons(task, 10, 20, seed=0)
    once = WeightedRandomSampler(range(1, 201), 200, replacement=False)
    assert Lessons(LoaderTask(DataLoader(NUMBERED, 10, sampler=once)), 10, 20, seed=0).held_out == 2


class Augmented(Dataset[Any]):
    """Numbers, with something drawn below their point by whoever reads them."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 1, 1), float(index)) + torch.rand(()), index % 2

    def __len__(self) -> int:
        return 200


def test_workers_that_persist_read_each_pass_anew() -> None:
    def loader() -> Any:
        return DataLoader(Augmented(), 10, shuffle=True, num_workers=1, persistent_workers=True)

    lessons = Lessons(LoaderTask(data := loader()), 10, 10, seed=0)
    straight = [lessons.learned(step)[0] for step in range(10)]  # counts, on the way, how many there are
    resumed = Lessons(LoaderTask(loader()), 10, 10, seed=0).learned(9)[0]
    assert torch.equal(straight[9], resumed)
    assert len(torch.cat(straight).floor().unique()) == 100
    assert data.persistent_workers
    assert data._iterator is None  # the user's own passes are left alone
