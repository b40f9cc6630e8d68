"""What ``blockswap check`` says of an experiment's library, before anything starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_blockswap.blocks.nni_format import to_nni
from nni_blockswap.cli.check import find_faults
from nni_blockswap.library.library import Library, write_about
from nni_blockswap.spaces import cost_table
from tests.conftest import SMALL, WRN
from tests.library.conftest import SPACE_ARGS

BUILT_FIRST = {"folder": "made", "teacher": {"epochs": 1}}

Told = Callable[..., list[str]]
"""Given the tuner's library, the trial's --init, and maybe its --teacher and the space's depth: the faults."""


@pytest.fixture
def told(tmp_path: Path) -> Told:
    def faults(library: Any, init: str, teacher: str = "made/teacher.pt", depth: int = 10) -> list[str]:
        arguments = {"space": WRN, "space_args": {**SPACE_ARGS, "depth": depth}, "data": "digits", "budget": "60%"}
        arguments |= {"data_options": {"image_size": 8}, "proxy": "library", "library": library, "students": 1}
        content = {
            "tuner": {"className": "nni_blockswap.tuner.BlockSwapTuner", "codeDirectory": ".", "classArgs": arguments},
            "searchSpace": {},
            "trialCommand": f"python -m trial.distill --data digits --data-option image_size=8 --init {init} "
            f"{teacher and '--teacher'} {teacher} --beta 0 --kd 1",
            "trialCodeDirectory": ".",
            "trialConcurrency": 1,
            "maxTrialNumber": 1,
            "trainingService": {"platform": "local"},
        }
        (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
        return [fault.sentence for fault in find_faults(tmp_path / "config.yml") if fault.fatal]

    return faults


def copied(library: Library, folder: Path) -> Path:
    shutil.copytree(library.folder, folder)
    return folder


def test_a_finished_library_has_no_fault(library: Library, teacher: Path, told: Told, tmp_path: Path) -> None:
    other = copied(library, tmp_path / "copy")  # the tuner may choose by one and trials start from another
    for init in (library.folder, other, "copy"):
        assert told(str(library.folder), f"library={init}", str(teacher)) == []


def test_one_that_is_not_there_or_not_finished_is_told_once(
    library: Library, teacher: Path, told: Told, tmp_path: Path
) -> None:
    (missing,) = told("nowhere", "library=nowhere", str(teacher))
    assert missing == f"there is no library in '{tmp_path / 'nowhere'}'; 'blockswap library' builds one."
    (copied(library, tmp_path / "half") / "block_01.safetensors").unlink()
    (unfinished,) = told("half", "library=half", str(teacher))
    assert "is not finished: block_01 is missing" in unfinished


def test_one_of_another_space_is_told_of_tuner_and_trial(library: Library, teacher: Path, told: Told) -> None:
    (of_tuner,) = told(str(library.folder), f"library={library.folder}", str(teacher), depth=16)
    assert f"the library in '{library.folder}' is of {WRN} with" in of_tuner
    (of_trial,) = told({**BUILT_FIRST, "teacher": str(teacher)}, f"library={library.folder}", str(teacher), depth=16)
    assert of_trial.startswith(f"the trial starts from the library in '{library.folder}' and the tuner has that in")


def test_trials_start_from_the_library_that_is_built_first(told: Told, tmp_path: Path) -> None:
    assert told(BUILT_FIRST, "library=made") == []
    assert told(BUILT_FIRST, "library=./made", "made/../made/teacher.pt") == []
    (unlike,) = told(BUILT_FIRST, "library=mode")
    assert unlike == (
        f"the trial starts from the library in '{tmp_path / 'mode'}' and the tuner has that in '{tmp_path / 'made'}': "
        f"there is no library in '{tmp_path / 'mode'}'; 'blockswap library' builds one."
    )
    (tmp_path / "mine.pt").touch()
    for taught_by, given in (({"epochs": 1}, "mode/teacher.pt"), ("mine.pt", "made/teacher.pt")):
        (no_teacher,) = told({**BUILT_FIRST, "teacher": taught_by}, "library=made", given)
        assert no_teacher == f"there is no checkpoint '{tmp_path / given}'."


def test_the_teacher_of_the_tuners_library_is_below_the_code_directory(
    told: Told, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    named = {**BUILT_FIRST, "teacher": "mine.pt"}
    (missing,) = told(named, "library=made", str(teacher))
    assert missing == f"there is no checkpoint '{tmp_path / 'mine.pt'}' of a teacher for the library."
    (tmp_path / "mine.pt").touch()
    assert told(named, "library=made", "mine.pt") == []


def test_a_library_of_a_programs_batches_is_one_of_any_data(
    library: Library, teacher: Path, told: Told, tmp_path: Path
) -> None:
    """As the trial has it."""
    write_about(copied(library, tmp_path / "own"), {**library.about, "data": "loader"})
    assert told(str(library.folder), "library=own", str(teacher)) == []


def test_whose_teacher_is_missing_is_told_from_the_trials_folder(
    library: Library, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(library, tmp_path / "copy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (fault,) = told(str(library.folder), "library=copy", "")
    assert f"needs --teacher, the one that the library learned from, which was '{library.about['teacher']}'" in fault


@pytest.mark.parametrize(("listed", "spelling"), [([], ""), (["W(1/2)"], "W(1/2)"), (["W(1/2)"], "W( 1/2 )")])
def test_what_is_taught_and_never_chosen_is_a_warning(listed: list[str], spelling: str, tmp_path: Path) -> None:
    arguments = {"space": WRN, "space_args": {**SMALL, "extra": ["W(1/2)"]}, "library": BUILT_FIRST, "budget": "60%"}
    arguments |= {"data": "digits", "data_options": {"image_size": 8}, "proxy": "library"}
    tuner = {"className": "nni_blockswap.tuner.BlockSwapTuner", "codeDirectory": ".", "classArgs": arguments}
    choices = to_nni(cost_table(WRN, {**SMALL, "extra": listed}))
    choices = json.loads(json.dumps(choices).replace("W(1/2)", spelling))
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"tuner": tuner, "searchSpace": choices}))
    found = [fault for fault in find_faults(tmp_path / "config.yml") if "never chosen" in fault.sentence]
    assert not any(fault.fatal for fault in found)
    said = "the library teaches 3 candidates that the search space file does not list, and that are never chosen, as W"
    assert [fault.sentence[: len(said)] for fault in found] == ([] if listed else [said])


def test_the_folder_has_to_be_named(told: Told) -> None:
    for init in ("library", "library="):
        assert told(BUILT_FIRST, init) == [
            "a student starts from a library in a folder, --init library=DIR; name it.",
        ]


def test_one_of_other_data_is_told_of_the_trial(library: Library, told: Told, tmp_path: Path) -> None:
    write_about(copied(library, tmp_path / "other"), {**library.about, "data": "cifar10"})
    (fault,) = told(BUILT_FIRST, "library=other")
    assert fault.endswith(f"the library in '{tmp_path / 'other'}' learned from cifar10, not from digits; build one.")
