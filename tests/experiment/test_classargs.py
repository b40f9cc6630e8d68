"""classArgs: where a data set's folder lies. Their faults are told in test_tuner and test_check."""

from pathlib import Path

import pytest
import yaml

from nni_blockswap.errors import ConfigError
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


@pytest.mark.parametrize(
    ("library", "sentence"),
    [
        ("{folder: 5}", "library.folder is text, not 5"),
        ("{folder: lib, teacher: 5}", "library.teacher is text or a mapping of names to values, not 5"),
        ("{folder: lib, lr: 1e-2}", "library.lr is a number, not '1e-2', which YAML takes for text; write 0.01"),
        ("{folder: lib, steps: many}", "library.steps is a whole number, not 'many'"),
        ("{folder: lib, device: 0}", "library.device is text, not 0"),
    ],
)
def test_a_library_to_build_has_fields_of_their_types(library: str, sentence: str) -> None:
    arguments = {"space": WRN, "data": "digits", "budget": "400K", "proxy": "library"}
    with pytest.raises(ConfigError, match=f"^the tuner's argument {sentence}.$"):
        read_settings({**arguments, "library": yaml.safe_load(library)}, {}, Path())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("tolerance: 2e-2", "tolerance is a number or null, not '2e-2', which YAML takes for text; write 0.02"),
        ("samples: '30'", "samples is a whole number, not '30', which YAML takes for text; write 30"),
        ("samples: 3e1", "samples is a whole number, not '3e1'"),
        ("tolerance: inf", "tolerance is a number or null, not 'inf'"),
        ("space_args: '1'", "space_args is a mapping of names to values, not '1'"),
    ],
)
def test_a_number_that_yaml_takes_for_text_is_told_as_it_has_to_be_written(given: str, sentence: str) -> None:
    arguments = {"space": WRN, "data": "digits", "budget": "400K", **yaml.safe_load(given)}
    with pytest.raises(ConfigError, match=f"^the tuner's argument {sentence}.$"):
        read_settings(arguments, {}, Path())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "a library ranks 20 architectures, and 25 students are asked for; lower students and maxTrialNumber."),
        ({"samples": 8}, "a library ranks 8 .* and maxTrialNumber, or raise samples, to at most 20."),
    ],
)
def test_more_students_than_a_library_ranks_are_told_before_one_is_built(given: dict[str, int], sentence: str) -> None:
    arguments = {"space": WRN, "data": "digits", "budget": "400K", "proxy": "library", "library": {"folder": "lib"}}
    with pytest.raises(ConfigError, match=sentence):
        read_settings({**arguments, "students": 25, **given}, {}, Path())
    assert read_settings({**arguments, "students": 8, **given}, {}, Path())[1] == 8
