"""A library that an experiment makes for itself: its teacher is trained first, and the tuner chooses by its errors."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nni import NoMoreTrialError

from nni_blockswap import BlockSwapTuner
from nni_blockswap.errors import BlockSwapError, StateError
from nni_blockswap.files import read_json
from nni_blockswap.library.library import Library
from nni_blockswap.searching import SearchSettings
from nni_blockswap.training.schooling import RECIPE, TEACHER, LibraryPlan, prepare
from tests.conftest import SMALL, WRN

TAUGHT = {"folder": "library", "teacher": {"epochs": 1, "batch_size": 256}, "steps": 2, "held_out": 96}
SEARCH = {"space": WRN, "space_args": SMALL, "data": "digits", "data_options": {"image_size": 8}, "proxy": "library"}


def read(folder: Path, **others: Any) -> LibraryPlan:
    search = SearchSettings(**SEARCH, budgets=["60%"], library=str(folder))  # type: ignore[arg-type]
    return LibraryPlan.read({**TAUGHT, **others}, search, folder / "project")


def test_the_teacher_is_trained_and_the_library_built_once(tmp_path: Path) -> None:
    told: dict[str, list[int]] = {}
    prepare(read(tmp_path), lambda what, progress: told.setdefault(what, []).append(progress.done))
    assert list(told) == ["teacher", "library"]
    assert told["teacher"][-1] == 1437 // 256  # steps of whole batches: four fifths of the 1,797 digits
    library = Library.load(tmp_path)
    library.check_teacher(torch.load(tmp_path / TEACHER))
    digests = dict(library.digests)
    told.clear()
    prepare(read(tmp_path), lambda what, progress: told.setdefault(what, []).append(progress.done))
    assert not told
    assert Library.load(tmp_path).digests == digests


def test_whoever_listens_may_stop_it_and_it_goes_on(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(what: str, progress: Any) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        prepare(read(tmp_path), stop)
    assert not (tmp_path / TEACHER).exists()
    prepare(read(tmp_path))
    assert Library.load(tmp_path)


def test_parts_of_a_step_are_no_progress(tmp_path: Path) -> None:
    told: list[int] = []
    plan = read(tmp_path, teacher={"epochs": 1, "batch_size": 256, "accumulate": 2})
    prepare(plan, lambda what, progress: told.append(progress.done) if what == "teacher" else None)
    assert (told[0], told[-1]) == (1, 6)  # 11 parts in pairs


def test_a_teacher_of_another_recipe_is_refused(tmp_path: Path) -> None:
    prepare(read(tmp_path))
    with pytest.raises(StateError, match=r"another recipe \(epochs was 1, now 2, lr was 0.1, now 0.2\); choose"):
        prepare(read(tmp_path, teacher={"epochs": 2, "batch_size": 256, "lr": 0.2}))
    (tmp_path / RECIPE).write_text("[1")
    with pytest.raises(StateError, match=r"teacher.json' is damaged; delete it"):
        prepare(read(tmp_path))
    (tmp_path / RECIPE).unlink()  # as of a library that was built before recipes were kept
    prepare(read(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epoch": 3}, "library has no 'epoch'"),
        ({"teacher": None}, "a checkpoint, or the recipe that trains one"),
        ({"teacher": {"epoch": 3}}, "library.teacher has no 'epoch'"),
        ({"teacher": {"epochs": -3}}, "--epochs must be above 0"),
        ({"steps": 0}, "steps"),
        ({"space": WRN}, "library has no 'space'"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BlockSwapError, match=said):
        read(tmp_path, **wrong)


def test_a_checkpoint_of_ones_own_teaches(tmp_path: Path) -> None:
    plan = read(tmp_path, teacher="mine.pt")
    assert plan.recipe is None
    assert plan.settings.teacher == str(tmp_path / "project" / "mine.pt")
    assert read(tmp_path, teacher="~/mine.pt").settings.teacher == str(Path.home() / "mine.pt")
    with pytest.raises(BlockSwapError, match=r"'~nobody-here/mine\.pt' is no path on this machine"):
        read(tmp_path, teacher="~nobody-here/mine.pt")


def test_its_relative_path_is_below_the_tuners_code_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    project = {"tuner": {"codeDirectory": str(tmp_path / "project")}}
    encoded = base64.b64encode(json.dumps(project).encode()).decode()
    monkeypatch.setattr(sys, "argv", ["nni", "--exp_params", encoded])
    tuner = BlockSwapTuner(**SEARCH, budget="60%", library={**TAUGHT, "teacher": "mine.pt"}, students=1)
    tuner.update_search_space({})
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(0)
    said = (tmp_path / "error.txt").read_text()
    assert said == f"there is no checkpoint '{tmp_path / 'project' / 'mine.pt'}'.\n"


def test_the_tuner_builds_it_and_hands_out_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    folder = tmp_path / "library"
    compared = {"methods": ["library", "random"], "budgets": ["60%", "40%"], "seeds": 1}
    tuner = BlockSwapTuner(**SEARCH, budget="60%", library={**TAUGHT, "folder": str(folder)}, students=4,
                           comparison=compared)  # fmt: skip
    tuner.update_search_space({})
    given = [tuner.generate_parameters(number) for number in range(4)]
    assert [(one["method"], one["variant"]) for one in given] == [
        ("library", "60%"), ("library", "40%"), ("random", "60%"), ("random", "40%"),
    ]  # fmt: skip
    errors = Library.load(folder).errors
    labels = [name for name in given[0] if name.startswith("block_")]
    assert given[0]["score"] == pytest.approx(sum(errors[label][given[0][label]].value for label in labels))
    assert read_json(tmp_path / "progress.json")["what"] in ("teacher", "library")
