"""Valid input for the tests to make wrong."""

import json
from pathlib import Path

import pytest
import yaml

from tests.fuzz import valid
from tests.fuzz.harness import run_blockswap, run_trial
from trial import distill

FEW, MANY = 3, 250
"""Inputs a test: in the everyday suite, and in the slow one, which tries 2,000 and more in all."""


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
    return home
