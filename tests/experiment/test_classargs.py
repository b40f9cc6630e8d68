"""classArgs: where a data set's folder lies. Their faults are told in test_tuner and test_check."""

from pathlib import Path

import pytest

from nni_blockswap.experiment.classargs import read_settings
from tests.conftest import WRN


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("images", "/project/images"),
        ("../images", "/project/../images"),
        ("/data/images", "/data/images"),
        ("~/images", "/home/someone/images"),
        (None, None),
    ],
)
def test_a_relative_data_root_is_below_the_code_directory(
    given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    arguments = {"space": WRN, "data": "cifar10", "data_root": given, "budget": "400K"}
    settings, _ = read_settings(arguments, {}, Path("/project"))
    assert settings.data_root == expected
