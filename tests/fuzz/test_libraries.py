"""Libraries with files that are wrong somewhere: what is taken from them is what was learned, or a sentence says why
not."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from nni_blockswap.files import read_json
from nni_blockswap.library.library import Library
from nni_blockswap.training.checkpoints import read
from tests.conftest import WRN
from tests.fuzz.harness import examine, run_blockswap, run_trial
from tests.fuzz.test_files import spoilt_in
from tests.fuzz.valid import IMAGES, SPACE, TRAIN
from trial import distill

LEARN = ["library", *SPACE, '--space-arg=extra=["W(1/2)"]', *IMAGES, "--teacher", "teacher.pt", "--batch-size", "8"]
LEARN += ["--held-out", "16", "--out", "library"]
CHOOSE = ["search", "--space", WRN, "--proxy", "library", "--library", "library", "--budget", "60%", "--out", "chosen"]
START = ["--architecture", "chosen/best.json", "--init", "library=library", "--teacher", "teacher.pt", *TRAIN]
BLOCKS = "block_00.safetensors", "block_01.safetensors", "block_02.safetensors"


@pytest.fixture(scope="module")
def school(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, libraries of two steps and of three, what is chosen by the first, a student that starts from it."""
    home = tmp_path_factory.mktemp("school")
    shutil.copy(workshop / "teacher.pt", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        ended = [
            run_blockswap(*LEARN, "--steps", "2"),
            run_blockswap(*CHOOSE),
            run_trial(distill, *START, "--out", "student"),
        ]
        shutil.copytree("library", "longer")
        ended.append(run_blockswap(*LEARN[:-1], "longer", "--steps", "3"))
    assert [one.code for one in ended] == [0] * 4, [one.err for one in ended]
    return home


def spoilt_library(school: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    """(name, content) of one of its files."""
    return spoilt_in(school / "library", "library.json", "library.json", *BLOCKS, "errors.csv")


def spoil(school: Path, case: tuple[str, bytes]) -> None:
    shutil.copytree(school / "library", "library")
    shutil.copy(school / "teacher.pt", "teacher.pt")
    Path("library", case[0]).write_bytes(case[1])


def test_what_is_chosen(count, school):
    expected = [read_json(school / "chosen" / "best.json"), (school / "chosen" / "ranking.csv").read_text()]

    def choose(case: tuple[str, bytes]) -> None:
        spoil(school, case)
        if run_blockswap(*CHOOSE).is_valid:
            assert [read_json("chosen/best.json"), Path("chosen", "ranking.csv").read_text()] == expected

    examine(spoilt_library(school), choose, count)


def test_what_a_student_starts_from(count, school):
    expected = read(school / "student" / "weights.pt")

    def start(case: tuple[str, bytes]) -> None:
        spoil(school, case)
        shutil.copytree(school / "chosen", "chosen")
        if run_trial(distill, *START, "--out", "student").is_valid:
            found = read("student/weights.pt")
            assert all(torch.equal(value, expected[name]) for name, value in found.items())

    examine(spoilt_library(school), start, count)


def test_what_learns_on(count, school):
    expected = Library.load(school / "longer")

    def learn(case: tuple[str, bytes]) -> None:
        spoil(school, case)
        if run_blockswap(*LEARN, "--steps", "3").is_valid:
            found = Library.load("library")
            assert (found.digests, found.errors) == (expected.digests, expected.errors)
            for name in ("library.json", "errors.csv"):
                assert Path("library", name).read_text() == (school / "longer" / name).read_text()

    examine(spoilt_library(school), learn, count)
