"""Images in a folder for each class, of whichever data set."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nni_blockswap.errors import DataError
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.images import labelled_files


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


def test_the_names_of_many_classes_are_looked_up_by_hash(tmp_path: Path) -> None:
    class Named(list[str]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError("a list is gone through for each of its names")

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    assert [number for _, number in labelled_files(tmp_path, Named("ab"))] == [0, 1]
