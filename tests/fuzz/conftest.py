"""Valid input for the tests to make wrong."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from nni_blockswap.architecture import Architecture
from tests.conftest import generated_coco
from tests.fuzz import valid
from tests.fuzz.harness import run_blockswap, run_trial
from trial import distill

FEW, MANY = 3, 250
"""Inputs a test: in the everyday suite, and in the slow one, which tries more than 4,500 in all."""


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def count(request: pytest.FixtureRequest) -> int:
    """How many inputs to try."""
    return int(request.param)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search's folder, a trial's, its teachers', a list of candidates, a config."""
    home = tmp_path_factory.mktemp("workshop")
    searched = run_blockswap(*valid.SEARCH, "--out", str(home / "search"))
    student = ["--architecture", str(home / "search" / "best.json"), "--teacher-dir", str(home / "teachers")]
    trained = run_trial(distill, *student, *valid.TRAIN, "--out", str(home / "trial"))
    assert (searched.code, trained.code) == (0, 0), searched.err + trained.err
    (home / "space.json").write_text(json.dumps(valid.CONFIG["searchSpace"]))
    (home / "config.yml").write_text(yaml.safe_dump(valid.CONFIG))
    (home / "compared.yml").write_text(yaml.safe_dump(valid.config(valid.BOTH)))
    (home / "plan.yml").write_text(yaml.safe_dump(valid.PLAN))
    errors = zip((10, 20, 30), ("S S S", "G(4) S B(2)", "B(2) B(2) B(2)"), strict=True)
    (home / "trained.csv").write_text("error,choices\n" + "".join(f"{error},{names}\n" for error, names in errors))
    (teacher,) = (home / "teachers").glob("*.pt")
    shutil.copy(teacher, home / "teacher.pt")
    return home


@pytest.fixture(scope="session")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier to make a detector of, and images to train it on."""
    home = tmp_path_factory.mktemp("detectors")
    (home / "coco").mkdir()
    generated_coco(home / "coco", count=2)
    smallest = Architecture.from_choices("search_spaces.resnet:ResNetSpace", ["G(N)"] * 8, {"depth": 18})
    smallest.save(home / "classifier.json")
    return home
