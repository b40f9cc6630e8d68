"""A student that is ready to be trained."""

from pathlib import Path

import pytest
import torch

from tests.trial.starting import ALONE, STUDENT


@pytest.fixture
def trained(tmp_path: Path) -> list[str]:
    """Arguments that train STUDENT with a teacher that is there already."""
    STUDENT.save(tmp_path / "student.json")
    torch.manual_seed(0)
    torch.save(STUDENT.teacher().build().state_dict(), tmp_path / "teacher.pt")
    return ["--architecture", str(tmp_path / "student.json"), "--teacher", str(tmp_path / "teacher.pt"), *ALONE]
