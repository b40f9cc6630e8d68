"""What a detector's trial starts from: fresh weights, its teacher's, a library's."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import BlockSwapError, TrainingError
from nni_blockswap.files import read_json
from nni_blockswap.library import store
from nni_blockswap.library.library import Library, write_about
from nni_blockswap.training import checkpoints, detection_trial
from nni_blockswap.training.detection import DetectionTraining
from trial.detect import run

MASK = "search_spaces.mask_rcnn:MaskRCNNSpace"
TINY = {"depth": 18, "min_size": 64, "max_size": 96, "box_batch_size_per_image": 8}
STUDENT = Architecture.from_choices(MASK, ["S"] * 7 + ["B(4)"], TINY)
TRAIN = shlex.split("--epochs 1 --batch-size 2 --limit-steps 1 --workers 0")

Started = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's file, its teacher's weights, and a library in which B(4) of the last block was taught."""
    folder = tmp_path_factory.mktemp("detectors")
    STUDENT.save(folder / "student.json")
    torch.manual_seed(5)
    teacher = checkpoints.plain_state(STUDENT.teacher().build())
    checkpoints.save(teacher, folder / "teacher.pt")
    taught: Any = STUDENT.build()
    about = {"space": MASK, "space_args": dict(STUDENT.space_args), "labels": list(STUDENT.choices), "data": "coco"}
    about |= {"teacher": "teacher.pt", "teacher_digest": store.digest(teacher), "seed": 0}
    about["steps"] = dict.fromkeys(STUDENT.choices, 1)
    for block in taught.blocks():
        weights = {} if block.label != "block_07" else block.branch.state_dict()
        named = {f"B(4) {name}": value for name, value in weights.items()}
        said = {"steps": 1, "errors": {"B(4)": [0.5, 0.1]}, "settled_after": {}}
        store.write(folder / "library" / f"{block.label}.safetensors", named, said)
    write_about(folder / "library", about)
    return folder


@pytest.fixture
def started(home: Path, coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: words of the command line -> weights with which training begins. The run's folder is ``out``."""
    monkeypatch.chdir(home)
    seen: list[Started] = []

    def fit(module: DetectionTraining, *rest: object, **named: object) -> None:
        seen.append(module.network.state_dict())
        (tmp_path / "out" / checkpoints.LAST).touch()  # so that its settings stay
        raise TrainingError("seen enough")

    def begin(*words: str) -> Started:
        fixed = ["--architecture", "student.json", "--data-root", str(coco_folder), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(detection_trial, "fit", fit)
        monkeypatch.setattr(sys, "argv", ["trial.detect", *fixed, *TRAIN, *words])
        with pytest.raises(TrainingError, match="seen enough"):
            run()
        return seen.pop()

    return begin


def branch(state: Started) -> Started:
    """Of the block that is swapped."""
    place = "backbone.body.layer4.1.branch."
    found = {name.removeprefix(place): value for name, value in state.items() if name.startswith(place)}
    assert found
    return found


def test_from_a_library_what_is_swapped_comes_from_there_and_the_rest_from_the_teacher(
    started: Any, home: Path, tmp_path: Path
) -> None:
    found = started("--init", "library=library", "--teacher", "teacher.pt")
    library, teacher = Library.load(home / "library"), torch.load(home / "teacher.pt", weights_only=True)
    kept = library.weights("block_07", "B(4)")
    swapped = branch(found)
    assert swapped.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in swapped.items())
    rest = [name for name in found if ".layer4.1.branch." not in name]
    assert len(rest) + len(swapped) == len(found)
    assert all(torch.equal(found[name], teacher[name]) for name in rest)
    assert read_json(tmp_path / "out" / "settings.json")["init"] == f"library={library.digest}"
    remembered = Architecture.load(tmp_path / "out" / "architecture.json").provenance
    assert remembered == {"library": "library", "library_digest": library.digest}
    with pytest.raises(BlockSwapError, match="holds a run with another teacher, init;"):
        started()


def test_from_its_teacher_come_names_and_shapes_that_it_has(started: Any, home: Path) -> None:
    found = started("--init", "teacher", "--teacher", "teacher.pt")
    teacher = torch.load(home / "teacher.pt", weights_only=True)
    assert torch.equal(found["rpn.head.cls_logits.weight"], teacher["rpn.head.cls_logits.weight"])
    shared = [name for name, value in found.items() if name in teacher and teacher[name].shape == value.shape]
    assert all(torch.equal(found[name], teacher[name]) for name in shared)
    assert len(shared) < len(found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--init library=library", "--init library=library needs --teacher CHECKPOINT, as no detector is trained"),
        ("--teacher teacher.pt", "a detector imitates nobody; give --init teacher or --init library=DIR beside"),
        ("--init best --teacher teacher.pt", "a student starts from fresh or teacher or library, not 'best'"),
        ("--init library=none --teacher teacher.pt", "there is no library in 'none'; 'blockswap library' builds one"),
        ("--init teacher --teacher torchvision:none", "torchvision has no weights called 'none'"),
        (
            "--init library=library --teacher teacher.pt --space-arg min_size=32",
            r"the library in 'library' is of search_spaces.mask_rcnn:MaskRCNNSpace with .*'min_size': 64",
        ),
        ("--init library=library --teacher other.pt", r"learned from another teacher \('teacher.pt'\) than the one"),
    ],
)
def test_what_it_cannot_start_from_is_refused(started: Any, home: Path, words: str, said: str) -> None:
    if "other.pt" in words:
        other = torch.load(home / "teacher.pt", weights_only=True)
        other["rpn.head.cls_logits.bias"].add_(1)
        checkpoints.save(other, home / "other.pt")
    with pytest.raises(BlockSwapError, match=said):
        started(*words.split())
