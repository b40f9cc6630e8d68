"""The task coco, on a tiny set of its own for closed forms and on real images where they are at hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.io import write_jpeg

from nni_blockswap.errors import DataError
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.coco import Coco
from nni_blockswap.training.average_precision import average_precision, results_of

RECTANGLE = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]  # polygon: x from 2 to 12, y from 3 to 9


def annotation(number: int, image: int, box: list[float], **more: object) -> dict[str, object]:
    return {"id": number, "image_id": image, "bbox": box, "category_id": 7, "area": 60.0, "iscrowd": 0,
            "segmentation": RECTANGLE, **more}  # fmt: skip


CROWD = {"iscrowd": 1, "segmentation": {"counts": [0, 20 * 16], "size": [16, 20]}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images of 20 x 16: an instance; an instance, a crowd and a box without area; a crowd; nothing."""
    annotations = [
        annotation(1, 1, [2, 3, 10, 6]),
        annotation(2, 2, [2, 3, 30, 6], category_id=90),  # wider than the image
        annotation(3, 2, [0, 0, 20, 16], **CROWD),
        annotation(4, 2, [5, 5, 0, 4]),
        annotation(5, 3, [0, 0, 20, 16], **CROWD),
    ]
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 16, "width": 20} for n in (1, 2, 3, 4)],
        "categories": [{"id": 7, "name": "train"}, {"id": 90, "name": "toothbrush"}],
        "annotations": annotations,
    }
    (tmp_path / "annotations").mkdir()
    for part in ("train2017", "val2017"):
        (tmp_path / part).mkdir()
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
        for number in (1, 2, 3, 4):
            ramp = torch.arange(20, dtype=torch.uint8).mul(12).repeat(3, 16, 1)
            write_jpeg(ramp, str(tmp_path / part / f"{number}.jpg"), quality=100)
    return tmp_path


@pytest.fixture(scope="module")
def coco_tiny(data_root: Callable[[str], Path]) -> Path:
    return data_root("coco-tiny")


def test_training_keeps_images_with_instances_and_no_crowds(root: Path) -> None:
    task = make_task("coco", str(root))
    assert task.num_classes == 91
    images, targets = task.minibatch(2, seed=0, augment=False)
    by_id = {int(target["image_id"]): target for target in targets}
    assert set(by_id) == {1, 2}
    assert by_id[1]["boxes"].tolist() == [[2, 3, 12, 9]]
    assert by_id[2]["boxes"].tolist() == [[2, 3, 20, 9]]  # clipped to the image
    assert (by_id[1]["labels"].tolist(), by_id[2]["labels"].tolist()) == ([7], [90])
    rectangle = torch.zeros(16, 20, dtype=torch.uint8)
    rectangle[3:9, 2:12] = 1
    assert torch.equal(by_id[1]["masks"], rectangle[None])
    assert all(image.shape == (3, 16, 20) and image.min() >= 0 and image.max() <= 1 for image in images)


def test_held_out_set_keeps_every_image_and_its_crowds(root: Path) -> None:
    batches = list(Coco(str(root)).val_loader(3))
    images, targets = ([one for batch in batches for one in batch[part]] for part in (0, 1))
    assert [int(target["image_id"]) for target in targets] == [1, 2, 3, 4]
    assert [target["iscrowd"].tolist() for target in targets] == [[0], [0, 1, 0], [1], []]
    assert int(targets[2]["masks"].sum()) == 16 * 20
    assert targets[3]["masks"].shape == (0, 16, 20)
    assert images[0].dtype == torch.uint8


def test_flip_mirrors_image_boxes_and_masks_together(root: Path) -> None:
    task = Coco(str(root))
    batch = task.minibatch(2, seed=0, augment=False)
    bytes_batch = ([(image * 255).byte() for image in batch[0]], batch[1])
    flips = []
    for seed in range(8):
        prepared = task.prepare(bytes_batch, train=True, generator=torch.Generator().manual_seed(seed))
        for image, target, original, before in zip(*prepared, *batch, strict=True):
            flips.append(not torch.equal(image, original))
            if flips[-1]:
                assert torch.equal(image, original.flip(2))
                ((x1, y1, x2, y2),) = before["boxes"].tolist()
                assert target["boxes"].tolist() == [[20 - x2, y1, 20 - x1, y2]]
                _, _, columns = torch.nonzero(target["masks"], as_tuple=True)
                assert (int(columns.min()), int(columns.max())) == (20 - 12, 20 - 2 - 1)  # x was 2 to 12
            else:
                assert torch.equal(target["boxes"], before["boxes"])
                assert torch.equal(target["masks"], before["masks"])
    assert 4 <= sum(flips) <= 12


def test_training_batches(root: Path) -> None:
    ((images, targets),) = Coco(str(root)).train_loader(2, seed=1)
    assert sorted(int(target["image_id"]) for target in targets) == [1, 2]
    assert [image.dtype for image in images] == [torch.uint8] * 2
    with pytest.raises(DataError, match="a batch of 3 needs as many training images; coco has 2"):
        Coco(str(root)).train_loader(3)


@pytest.mark.parametrize("category", [0, 91])
def test_categories_are_cocos(root: Path, category: int) -> None:
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": category, "name": "other"})
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"'train2017' has a category {category}; COCO's go from 1 to 90"):
        Coco(str(root)).minibatch(1, seed=0)


@pytest.mark.parametrize(
    "box",
    [[20, 2, 5, 5], [2, 16, 5, 5], [-9, 2, 9, 5], [30, 40, 5, 5], [2, -6, 5, 6], [15, 2, 1e-7, 5], [0, 2, 1e-7, 5]],
)
def test_boxes_outside_their_image_are_left_out(root: Path, box: list[float]) -> None:
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] += [annotation(9, 1, box), annotation(10, 4, box)]
    path.write_text(json.dumps(content))
    _, targets = Coco(str(root)).minibatch(2, seed=0, augment=False)  # image 4 has nothing else
    assert {int(target["image_id"]): len(target["boxes"]) for target in targets} == {1: 1, 2: 1}


def edit(path: Path, kind: str, position: int, **changes: object) -> None:
    """Write other values into an image or an annotation of the file; None takes one away."""
    content = json.loads(path.read_text())
    entry = {**content[kind][position], **changes}
    content[kind][position] = {key: value for key, value in entry.items() if value is not None}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bbox": None}, {"bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, "4"]}, {"bbox": [1, 2, 3, float("nan")]},
        {"area": None}, {"area": "large"}, {"category_id": "7"}, {"category_id": 95}, {"category_id": 8},
        {"iscrowd": "no"}, {"segmentation": None}, {"segmentation": []}, {"segmentation": [[]]},
        {"segmentation": [[1, 2, 3, 4]]}, {"segmentation": {"counts": [0, 20 * 16], "size": [20, 16]}},
    ],
)  # fmt: skip
def test_annotations_that_lack_something(root: Path, wrong: dict[str, object]) -> None:
    edit(root / "annotations" / "instances_train2017.json", "annotations", 1, **wrong)
    with pytest.raises(DataError, match=f"the {next(iter(wrong))} of annotation 2 in '.*train2017.json' has to be "):
        Coco(str(root)).minibatch(1, seed=0)


def test_an_annotation_may_be_number_0_and_need_not_say_that_it_is_no_crowd(root: Path) -> None:
    """What pycocotools' metrics cannot do with: they count every instance all the same."""
    edit(root / "annotations" / "instances_val2017.json", "annotations", 0, id=0, iscrowd=None)
    held_out = Coco(str(root)).held_out
    _, target = held_out[0]
    found = {**target, "scores": torch.ones(1), "masks": target["masks"][:, None].float()}
    assert target["iscrowd"].tolist() == [0]
    figures = average_precision(held_out.index, {1: results_of(1, found)})
    assert [figures["box/AP"], figures["mask/AP"]] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("wrong", [{"id": "a"}, {"height": None}, {"width": 20.0}, {"file_name": None}])
def test_images_that_lack_something(root: Path, wrong: dict[str, object]) -> None:
    edit(root / "annotations" / "instances_val2017.json", "images", 3, **wrong)
    with pytest.raises(DataError, match=r"an image of '.*val2017.json' has an id, a file_name, height and width"):
        Coco(str(root)).val_loader(1)


def test_an_image_of_another_size_than_its_annotations(root: Path) -> None:
    edit(root / "annotations" / "instances_train2017.json", "images", 0, height=32, width=40)
    with pytest.raises(DataError, match=r"1\.jpg' is 20x16, and its annotations are of 40x32"):
        Coco(str(root)).minibatch(2, seed=0)


def test_minibatches_follow_the_seed_and_have_names(coco_tiny: Path) -> None:
    task, again = Coco(str(coco_tiny)), Coco(str(coco_tiny))
    names = [task.fingerprint(task.minibatch(4, seed=seed, index=index)) for seed, index in ((0, 0), (0, 1), (1, 0))]
    assert len(set(names)) == 3
    assert names[0] == again.fingerprint(again.minibatch(4, seed=0, index=0))
    first, second = ({int(t["image_id"]) for t in task.minibatch(40, seed=0, index=i)[1]} for i in (0, 1))
    assert not first & second


def test_real_boxes_enclose_their_masks(coco_tiny: Path) -> None:
    _, targets = Coco(str(coco_tiny)).minibatch(16, seed=0)
    for target in targets:
        for (x1, y1, x2, y2), mask in zip(target["boxes"].tolist(), target["masks"].numpy(), strict=True):
            rows, columns = np.nonzero(mask)
            assert x1 - 1.5 <= columns.min() <= columns.max() <= x2 + 1.5
            assert y1 - 1.5 <= rows.min() <= rows.max() <= y2 + 1.5


class Sampling(nn.Module):
    """Losses that depend on the global generator, as those of Mask R-CNN do."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"one": torch.rand(()), "other": torch.rand(())}


def test_loss_is_the_same_each_time_and_leaves_the_generators_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Coco(str(root))
    batch = task.minibatch(1, seed=0)
    torch.manual_seed(5)
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "manual_seed_all", pytest.fail)  # as torch.manual_seed calls it
        first = task.loss(Sampling(), batch)
    drawn = torch.rand(1)
    second = task.loss(Sampling(), batch)
    torch.manual_seed(5)
    assert first == second
    assert drawn == torch.rand(1)
    torch.manual_seed(0)
    assert first == torch.rand(()) + torch.rand(())  # the sum
    losses = task.losses(Sampling(), batch)
    assert losses != task.losses(Sampling(), batch)


def test_to_casts_images_and_boxes_only(root: Path) -> None:
    task = Coco(str(root))
    images, targets = task.to(task.minibatch(1, seed=0), torch.device("cpu"), torch.float64)
    assert (images[0].dtype, targets[0]["boxes"].dtype) == (torch.float64, torch.float64)
    assert (targets[0]["labels"].dtype, targets[0]["masks"].dtype) == (torch.int64, torch.uint8)


def test_missing_and_broken_files(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="coco needs a folder that holds train2017/"):
        make_task("coco", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="coco needs a folder"):
        make_task("coco")
    (root / "train2017" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.jpg' cannot be read"):
        Coco(str(root)).minibatch(2, seed=0)
    (root / "annotations" / "instances_train2017.json").write_text("{")
    with pytest.raises(DataError, match="is not an annotation file of COCO"):
        Coco(str(root)).minibatch(1, seed=0)
