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


@pytest.fixture
def tiny_cifar(tmp_path: Path) -> Path:
    """Ten classes of 32x32 images, 3 for training and 2 for testing each; the pixels tell them apart."""
    draw = np.random.default_rng(0)
    for part, each in (("train", 3), ("test", 2)):
        for label in range(10):
            folder = tmp_path / part / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(each):
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path


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
    with pytest.raises(DataError, match="an image_size of 4, 8, 16 or 32, not 20"):
        make_task("cifar10", str(tiny_cifar), image_size=20)


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


def test_image_folder(tiny_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("image-folder", str(tiny_cifar), image_size=24)
    assert task.num_classes == 10
    images, labels = next(iter(task.val_loader(20)))
    assert images.shape == (20, 3, 24, 24)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    one, two = (task.minibatch(8, seed=3, augment=True) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], task.minibatch(8, seed=3, augment=False)[0])
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)  # as torch.manual_seed calls it
    before = torch.get_rng_state()
    assert torch.equal(one[0], task.minibatch(8, seed=3, augment=True)[0])
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.undo()
    (tiny_cifar / "test").rename(tiny_cifar / "elsewhere")
    with pytest.raises(DataError, match="validation needs a folder val/<class>/"):
        task.val_loader(2)


@pytest.mark.parametrize("name", ["imagenet", "image-folder"])
def test_large_images_are_centre_crops_of_a_shorter_side_of_256_normalised(name: str, tmp_path: Path) -> None:
    """As torchvision's pretrained networks expect them; PIL resizes; each of its two passes may round otherwise."""
    draw = np.random.default_rng(0)
    sizes = [(256, 256), (480, 320), (320, 640)]  # width, height
    crops = [(16, 16), (80, 16), (16, 144)]  # left, top, once the shorter side is 256
    pictures = [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    for part in ("train", "val"):
        (tmp_path / part / "class0").mkdir(parents=True)
        for index, picture in enumerate(pictures):
            picture.save(tmp_path / part / "class0" / f"{index}.png")
    images, _ = next(iter(make_task(name, str(tmp_path)).val_loader(3)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for image, picture, (left, top), tolerance in zip(images, pictures, crops, (1e-3, 2.01, 2.01), strict=True):
        scale = 256 / min(picture.size)
        resized = picture.resize([round(scale * side) for side in picture.size], Image.Resampling.BILINEAR)
        expected = torch.tensor(np.asarray(resized.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)
        torch.testing.assert_close(255 * (image * std + mean), expected.float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["cifar10", "image-folder"])
def test_held_out_classes_have_the_numbers_of_the_training_set(tiny_cifar: Path, name: str) -> None:
    shutil.rmtree(tiny_cifar / "test" / "class0")
    shutil.rmtree(tiny_cifar / "test" / "class4")
    options = {"image_size": 24} if name == "image-folder" else {}
    _, labels = next(iter(make_task(name, str(tiny_cifar), **options).val_loader(16)))
    assert labels.tolist() == [label for label in (1, 2, 3, 5, 6, 7, 8, 9) for _ in range(2)]
    (tiny_cifar / "test" / "class9").rename(tiny_cifar / "test" / "class99")
    with pytest.raises(DataError, match=r"test' has a class 'class99' that the training set has not"):
        make_task(name, str(tiny_cifar), **options).val_loader(16)


def test_images_of_16_bits_are_read_as_bytes(tiny_cifar: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 65536, (32, 32), dtype=np.uint16)
    Image.fromarray(grey).save(tiny_cifar / "test" / "class0" / "0.png")
    images, _ = next(iter(make_task("cifar10", str(tiny_cifar)).val_loader(1)))
    assert images.dtype == torch.uint8
    assert all(np.array_equal(channel.numpy(), grey // 256) for channel in images[0])


@pytest.mark.parametrize("name", ["cifar10", "image-folder"])
def test_images_of_a_kind_that_is_not_read_are_told_when_files_are_listed(tiny_cifar: Path, name: str) -> None:
    Image.new("RGB", (32, 32)).save(tiny_cifar / "test" / "class3" / "7.BMP", "BMP")
    with pytest.raises(DataError, match=r"class3/7\.BMP' is of a kind that is not read; convert it to one of \.jpg"):
        make_task(name, str(tiny_cifar)).val_loader(2)


@pytest.mark.parametrize("name", ["cifar10", "image-folder"])
def test_hidden_files_and_folders_are_no_images_and_no_classes(tiny_cifar: Path, name: str) -> None:
    before = make_task(name, str(tiny_cifar)).minibatch(30, seed=0, augment=False)
    image = tiny_cifar / "train" / "class0" / "0.png"
    for hidden in (
        ".ipynb_checkpoints/0-checkpoint.png",
        "class0/.ipynb_checkpoints/0-checkpoint.png",
        "class1/._0.png",
    ):
        (tiny_cifar / "train" / hidden).parent.mkdir(exist_ok=True)
        shutil.copy(image, tiny_cifar / "train" / hidden)
    task = make_task(name, str(tiny_cifar))
    assert task.num_classes == 10
    assert all(
        torch.equal(one, other) for one, other in zip(task.minibatch(30, seed=0, augment=False), before, strict=True)
    )
    with pytest.raises(DataError, match="there are 30: lower"):
        task.minibatch(31, seed=0)


@pytest.mark.parametrize("name", ["cifar10", "image-folder"])
def test_folders_without_images_are_for_held_out_classes_alone(tiny_cifar: Path, name: str) -> None:
    for path in (tiny_cifar / "test" / "class3").iterdir():
        path.unlink()
    _, labels = next(iter(make_task(name, str(tiny_cifar)).val_loader(20)))
    assert labels.tolist() == [label for label in range(10) if label != 3 for _ in range(2)]
    for path in (tiny_cifar / "train" / "class4").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"there are none in '.*train/class4'"):
        make_task(name, str(tiny_cifar)).minibatch(1, seed=0)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("imagenet", 1000)])
def test_more_folders_than_classes_are_refused(tmp_path: Path, name: str, classes: int) -> None:
    for label in range(classes + 1):
        (tmp_path / "train" / f"{label}").mkdir(parents=True)
    with pytest.raises(DataError, match=f"train' holds {classes + 1} folders, and the data set has {classes} classes"):
        make_task(name, str(tmp_path))


def test_a_part_of_imagenet_is_told_once(tiny_cifar: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_task("image-folder", str(tiny_cifar))
    assert not caplog.messages
    tasks = [make_task("imagenet", str(tiny_cifar)) for _ in range(2)]
    (told,) = caplog.messages
    assert told.startswith(f"imagenet has 1000 classes and '{tiny_cifar / 'train'}' holds 10: they are numbered from 0")
    assert tasks[0].num_classes == 1000


@pytest.mark.parametrize("size", [0, -4, "x", 32.0, True, None])
def test_image_sizes_that_are_none(tiny_cifar: Path, size: object) -> None:
    with pytest.raises(DataError, match=f"image-folder's image_size is a number of pixels, 1 or more, not {size!r}"):
        make_task("image-folder", str(tiny_cifar), image_size=size)


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


@pytest.mark.parametrize(
    ("name", "options", "error", "sentence"),
    [
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


def test_the_names_of_many_classes_are_looked_up_by_hash(tmp_path: Path) -> None:
    class Named(list[str]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError("a list is gone through for each of its names")

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    assert [number for _, number in labelled_files(tmp_path, Named("ab"))] == [0, 1]
