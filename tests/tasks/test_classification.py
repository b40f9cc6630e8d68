import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from nni_blockswap.errors import ConfigError, DataError
from nni_blockswap.tasks import TASKS, make_task, small_images
from nni_blockswap.tasks.augmentation import Augmentation
from nni_blockswap.tasks.classification import Classification
from nni_blockswap.tasks.images import labelled_files


def test_digits_are_split_once_and_for_all_evenly_over_the_classes() -> None:
    task = make_task("digits")
    held_out = torch.cat([labels for _, labels in task.val_loader(50)])
    train = torch.cat([labels for _, labels in task.train_loader(1)])
    assert len(train) + len(held_out) == len(load_digits().target) == 1797
    assert torch.bincount(held_out).tolist() == [36] * 10 or torch.bincount(held_out).max() <= 37
    assert len(held_out) == 360


def test_digits_keep_their_content_when_upscaled() -> None:
    task = make_task("digits", image_size=32)
    images, _ = next(iter(task.val_loader(360)))
    assert images.shape == (360, 1, 32, 32)
    originals = torch.tensor(load_digits().images) * (255 / 16)
    shrunk = torch.nn.functional.avg_pool2d(images.float(), 4)[:, 0]
    distance = torch.cdist(shrunk.flatten(1).double(), originals.flatten(1)).min(1).values / 8
    assert distance.max() < 40  # mean grey level; unrelated digits differ by about 90


def test_a_loader_epoch_is_a_permutation_and_seeded() -> None:
    task = make_task("digits")

    def epoch(seed: int) -> torch.Tensor:
        return torch.cat([images.flatten(1) for images, _ in task.train_loader(64, seed=seed)])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert len(epoch(1)) == 1437 // 64 * 64


def test_minibatches_are_disjoint_seeded_and_normalised() -> None:
    task = make_task("digits")
    first, second = (task.minibatch(64, seed=0, index=index, augment=False) for index in (0, 1))
    assert torch.equal(first[0], task.minibatch(64, seed=0, augment=False)[0])
    assert task.fingerprint(first) != task.fingerprint(second)
    assert task.fingerprint(first) != task.fingerprint(task.minibatch(64, seed=1, augment=False))
    rows = {tuple(image.flatten().tolist()) for image in first[0]}
    assert not rows & {tuple(image.flatten().tolist()) for image in second[0]}
    large = task.minibatch(1400, seed=0, augment=False)[0]
    assert large.mean().abs() < 0.02
    assert abs(large.std() - 1) < 0.02


def test_labels_that_are_ignored_do_not_count() -> None:
    task = Classification()
    task.num_classes = 10
    outputs = torch.arange(10.0, 0.0, -1).repeat(8, 1)  # class n is ranked n-th
    labels = torch.tensor([0, 0, 4, 5, -100, -100, -100, 0])
    expected = {"accuracy": pytest.approx(3 / 5), "top5": pytest.approx(4 / 5)}
    assert task.figures(outputs, labels) == expected
    assert task.training_figures(outputs, labels) == {"accuracy": expected["accuracy"]}
    assert task.figures(outputs, labels.clamp(min=9)) == {"accuracy": 0, "top5": 0}


def test_where_no_label_counts_nothing_is_hit_and_a_byte_of_156_is_a_class() -> None:
    task = Classification()
    task.num_classes = 200
    outputs = torch.zeros(2, 200)
    outputs[:, 156] = 1.0
    unknown = torch.full((2,), -100)
    assert task.figures(outputs, unknown) == {"accuracy": 0, "top5": 0}
    assert task.training_figures(outputs, unknown) == {"accuracy": 0}
    assert task.training_figures(outputs, torch.tensor([156, 3], dtype=torch.uint8)) == {"accuracy": 0.5}


def test_minibatch_needs_enough_images() -> None:
    with pytest.raises(DataError, match=r"2 minibatch.* of 1000 need 2000 training examples; there are 1437: lower"):
        make_task("digits").minibatch(1000, seed=0, index=1)


def test_cifar_from_folders_reads_pixels_and_labels_exactly(tiny_cifar: Path) -> None:
    task = make_task("cifar10", str(tiny_cifar))
    images, labels = next(iter(task.val_loader(20)))
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tiny_cifar / "test" / f"class{label}" / f"{index % 2}.png"
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
    batch = task.prepare((images, labels), train=False)
    expected = (images[3, 1, 5, 7].item() / 255 - 0.4822) / 0.2435
    assert batch[0][3, 1, 5, 7].item() == pytest.approx(expected, rel=1e-5)


def test_cifar_in_its_own_format_reads_pixels_and_labels_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published layout: a row an image, 1,024 bytes each of red, green and blue, row by row."""
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None], ["data_batch_2", None]])  # None: any content
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.default_rng(0)
    stored = {}
    for part, labels in (("data_batch_1", [3, 1, 4]), ("data_batch_2", [9, 2, 6, 5]), ("test_batch", [7, 0, 8, 7])):
        stored[part] = draw.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
        (folder / part).write_bytes(pickle.dumps({"data": stored[part], "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{label}" for label in range(10)]}))

    task = make_task("cifar10", str(tmp_path))
    held_out, labels = next(iter(task.val_loader(4)))
    assert np.array_equal(held_out.numpy(), stored["test_batch"].reshape(4, 3, 32, 32))
    assert labels.tolist() == [7, 0, 8, 7]
    images, labels = next(iter(task.train_loader(7)))
    rows = np.concatenate([stored["data_batch_1"], stored["data_batch_2"]])
    by_label = dict(zip([3, 1, 4, 9, 2, 6, 5], rows.reshape(7, 3, 32, 32), strict=True))
    assert sorted(labels.tolist()) == sorted(by_label)
    for image, label in zip(images.numpy(), labels.tolist(), strict=True):
        assert np.array_equal(image, by_label[label])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Augmentation(pad=4, flip=True, cutout=16)),  # the paper's section 5
        ({"augment": "flip"}, Augmentation(pad=0, flip=True, cutout=0)),
        ({"augment": "crop"}, Augmentation(pad=4, flip=False, cutout=0)),
        ({"augment": "cutout"}, Augmentation(pad=0, flip=False, cutout=16)),
        ({"augment": "none"}, Augmentation(pad=0, flip=False, cutout=0)),
    ],
)
def test_cifar_is_augmented_as_told(
    name: str, options: dict[str, str], expected: Augmentation, tiny_cifar: Path
) -> None:
    assert make_task(name, str(tiny_cifar), **options).augmentation == expected


def test_batches_go_through_the_augmentation_in_training_alone(tiny_cifar: Path) -> None:
    task = make_task("cifar10", str(tiny_cifar), augment="flip")
    batch = next(iter(task.train_loader(30)))
    plain, _ = task.prepare(batch, train=False)
    augmented, _ = task.prepare(batch, train=True, generator=torch.Generator().manual_seed(0))
    mirrored = (augmented != plain).flatten(1).any(1)
    assert 5 <= mirrored.sum() <= 25
    assert torch.equal(augmented[mirrored], plain[mirrored].flip(3))


def test_cifar_limit_takes_the_same_images_evenly(tiny_cifar: Path) -> None:
    task = make_task("cifar10", str(tiny_cifar), limit=20)
    labels = torch.cat([labels for _, labels in task.train_loader(1)])
    assert torch.bincount(labels).tolist() == [2] * 10


def test_cifar_is_scaled_by_means_of_pixels(tiny_cifar: Path) -> None:
    ((whole, labels),) = make_task("cifar10", str(tiny_cifar)).val_loader(20)
    ((scaled, same),) = make_task("cifar10", str(tiny_cifar), image_size=8, limit=20).val_loader(20)
    assert torch.equal(labels, same)
    assert scaled.dtype == torch.uint8
    by_hand = whole.double().view(20, 3, 8, 4, 8, 4).mean((3, 5))
    assert (scaled.double() - by_hand).abs().max() <= 0.5
    for size in (20, 8.0):
        with pytest.raises(DataError, match=f"an image_size of 4, 8, 16 or 32, not {size}"):
            make_task("cifar10", str(tiny_cifar), image_size=size)


@pytest.mark.parametrize("limit", [0, 9, 21, 25, "many", 20.0])
def test_cifar_limits_that_cannot_be_met(tiny_cifar: Path, limit: object) -> None:
    task = make_task("cifar10", str(tiny_cifar), limit=limit)
    with pytest.raises(DataError, match=rf"evenly over 10 classes, 10 to 20 or all 30 of them, not {limit!r}"):
        task.minibatch(2, seed=0)


def test_cifar_is_read_once(tiny_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def read(*given: object, **more: object) -> list[tuple[str, int]]:
        reads.append(given)
        return labelled_files(*given, **more)

    monkeypatch.setattr(small_images, "labelled_files", read)
    task = make_task("cifar10", str(tiny_cifar))
    for index in range(3):
        task.minibatch(2, seed=0, index=index)
    assert len(reads) == 1


def test_cifar_that_is_nowhere(tmp_path: Path) -> None:
    task = make_task("cifar10", str(tmp_path / "none"))
    with pytest.raises(
        DataError, match=r"CIFAR10 is not in .* and cannot be downloaded .*; put torchvision's copy there"
    ):
        task.minibatch(2, seed=0)


def test_wrong_image_sizes_and_broken_files_are_named(tiny_cifar: Path) -> None:
    Image.new("RGB", (31, 32)).save(tiny_cifar / "test" / "class0" / "0.png")
    with pytest.raises(DataError, match=r"class0/0.png' is 31x32; every image must be 32x32"):
        make_task("cifar10", str(tiny_cifar)).val_loader(2)
    (tiny_cifar / "test" / "class0" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"class0/0\.png' cannot be read: .*[^.]\.$"):
        make_task("cifar10", str(tiny_cifar)).val_loader(2)


def test_images_are_decoded_once_for_all_loaders(tiny_cifar: Path) -> None:
    task = make_task("cifar10", str(tiny_cifar))
    first = [next(iter(loader)) for loader in (task.train_loader(2), task.val_loader(2))]
    for part in ("train", "test"):
        shutil.rmtree(tiny_cifar / part)
    again = [next(iter(loader)) for loader in (task.train_loader(2), task.val_loader(2))]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loaders_order_is_drawn_at_its_first_batch(tiny_cifar: Path, workers: int) -> None:
    loader = make_task("image-folder", str(tiny_cifar), image_size=24).train_loader(10, workers=workers)
    batches = iter(loader)
    loader.generator.manual_seed(7)
    torch.manual_seed(7)
    late = next(batches)
    loader.generator.manual_seed(7)
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip(late, next(iter(loader)), strict=True))


def test_what_a_reading_process_meets_is_one_sentence(tiny_cifar: Path) -> None:
    broken = tiny_cifar / "test" / "class0" / "0.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError) as met:
        next(iter(make_task("image-folder", str(tiny_cifar)).val_loader(2, workers=1)))
    assert re.fullmatch(rf"the image '{re.escape(str(broken))}' cannot be read: [^\n]+\.", str(met.value))


def batches(root: str | None) -> list[torch.Tensor]:
    return [torch.zeros(2, 1, 8, 8)]


@pytest.mark.parametrize(
    ("name", "options", "error", "sentence"),
    [
        (f"{__name__}:batches", {}, ConfigError, f"returns a task, and '{__name__}:batches' returned a list;"),
        ("mnist", {}, DataError, "there is no data set 'mnist'; choose from digits, cifar10"),
        ("digits", {"size": 3}, ConfigError, "the data set 'digits' has no option 'size'; it has held_out, image_size"),
        ("digits", {"held_out": 5}, ConfigError, "the data set 'digits' cannot take the options held_out=5: "),
        ("digits", {"image_size": "x"}, ConfigError, "the data set 'digits' cannot take the options image_size=x: "),
        ("cifar10", {}, DataError, "CIFAR10 needs a folder"),
        ("cifar10", {"augment": "rotate"}, DataError, "augment is made of crop, flip and cutout"),
        ("imagenet", {}, DataError, "imagenet needs a folder that holds train/<class>/"),
    ],
)
def test_bad_requests(name: str, options: dict[str, object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make_task(name, None, **options)
    assert "mnist" not in TASKS


def crops(image: torch.Tensor, pad: int) -> list[torch.Tensor]:
    """All crops of the zero-padded image, and their mirror images."""
    padded = torch.nn.functional.pad(image, [pad] * 4)
    size = image.shape[-1]
    found = [padded[:, i : i + size, j : j + size] for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    return found + [crop.flip(2) for crop in found]


def test_augmentation_gives_crops_and_flips_uniformly() -> None:
    image = torch.arange(1.0, 26).view(1, 5, 5)
    out = Augmentation(pad=1, flip=True, cutout=0)(image.repeat(3600, 1, 1, 1), torch.Generator().manual_seed(0))
    allowed = crops(image, 1)
    counts = torch.stack([(out == crop).all(dim=(1, 2, 3)).sum() for crop in allowed])
    assert counts.sum() == 3600
    chi_square = ((counts - 200.0) ** 2 / 200).sum().item()
    assert chi_square < 40.8  # 17 degrees of freedom, 0.1 %


def test_cutout_zeroes_one_clipped_square() -> None:
    out = Augmentation(pad=0, flip=False, cutout=4)(torch.ones(500, 2, 10, 10), torch.Generator().manual_seed(0))
    sizes = set()
    for image in out:
        assert torch.equal(image[0], image[1])
        rows, columns = torch.where(image[0] == 0)
        height, width = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
        assert len(rows) == height * width
        assert 2 <= height <= 4
        assert 2 <= width <= 4
        sizes.add((height, width))
    assert (4, 4) in sizes
    assert (2, 2) in sizes
