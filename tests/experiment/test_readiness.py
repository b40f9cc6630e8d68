"""blockswap check names what is wrong with a machine before a trial starts there."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_blockswap.experiment import probe
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.readiness import faults, warnings

ROOT = Path(__file__).parents[2]
Machines = list[dict[str, Any]]


@pytest.fixture
def written(two_machines: Machines, tmp_path: Path) -> Any:
    """A function: changes to experiments/remote.yml, and to its first machine -> the changed config."""

    def write(machine: dict[str, Any] | None = None, trial: str = "", **changes: Any) -> Config:
        content = yaml.safe_load((ROOT / "experiments" / "remote.yml").read_text())
        entries = [{name: value for name, value in one.items() if name != "home"} for one in two_machines]
        entries[0] |= machine or {}
        content["trainingService"]["machineList"] = entries
        code = tmp_path / "code"
        (code / "teachers" / "digits").mkdir(parents=True, exist_ok=True)
        (code / "teachers" / "digits" / "weights.pt").touch()
        content |= {"nniManagerIp": "127.0.0.1", "trialCodeDirectory": str(code), **changes}
        content["trialCommand"] += trial
        (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
        return Config(tmp_path / "config.yml")

    return write


def test_the_shipped_config_has_no_fault_on_machines_that_are_there(written: Any) -> None:
    config = written()
    assert faults(config) == []
    assert warnings(config) == []


@pytest.mark.parametrize(
    ("machine", "trial", "sentence"),
    [
        ({"port": 1}, "", "cannot be reached by ssh .*; try: ssh -i .*key -p 1 "),
        ({"user": "nobody-of-that-name"}, "", "nobody-of-that-name@.* refuses user and key"),
        ({"sshKeyFile": "{home}/none"}, "", "cannot be reached by ssh .*none"),
        ({"pythonPath": "{home}"}, "", "pythonPath '.*' on .* holds no program python"),
        ({"pythonPath": sys.executable}, "", "holds no program python; pythonPath is the folder"),
        ({}, " --data-root /no/such/folder", "'/no/such/folder' is not on .*; put it there"),
        ({}, " --data-root data", "the trials read 'data', which is not in the trialCodeDirectory"),
        ({}, " --teacher nowhere.pt", "the trials read 'nowhere.pt'"),
        ({}, " --init library=/no/library", "'/no/library' is not on"),
    ],
)
def test_a_fault_is_named(
    machine: dict[str, Any], trial: str, sentence: str, written: Any, two_machines: Machines
) -> None:
    home = two_machines[0]["home"]
    given = {name: value.format(home=home) if isinstance(value, str) else value for name, value in machine.items()}
    with pytest.raises(AssertionError, match=sentence):
        assert "\n".join(faults(written(given, trial))) == ""


def test_packages_that_lack_are_named_with_their_versions(written: Any, two_machines: Machines) -> None:
    bare = two_machines[0]["home"] / "bare"
    bare.mkdir()
    (bare / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')  # no packages
    (bare / "python").chmod(0o755)
    found = "\n".join(faults(written({"pythonPath": str(bare)})))
    assert "torch<3,>=2.6" in found.replace(" ", "")
    assert "has no pip" in found
    assert "nni_blockswap, search_spaces, trial cannot be imported on" in found


def test_modules_of_ones_own_that_trials_import_are_looked_for(written: Any) -> None:
    config = written(trial=" --data their_data.images:load")
    config.arguments["space_args"]["extra"] = ["their_blocks:MB(4)"]
    config.arguments["proxy"] = "of_the_search_alone:Proxy"
    found = "\n".join(faults(config))
    assert "their_blocks, their_data cannot be imported on" in found
    for name in ("their_blocks.py", "their_data"):
        (config.trial_directory / name).mkdir()
    assert faults(config) == []


def test_code_that_is_uploaded_need_not_be_there(written: Any, two_machines: Machines) -> None:
    bare = two_machines[0]["home"] / "bare_too"
    bare.mkdir()
    (bare / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    (bare / "python").chmod(0o755)
    config = written({"pythonPath": str(bare)})
    for name in ("nni_blockswap", "search_spaces", "trial"):
        (config.trial_directory / name).mkdir()
    assert "cannot be imported" not in "\n".join(faults(config))


def test_an_address_that_only_this_machine_knows(written: Any) -> None:
    config = written({"host": "192.0.2.1", "port": 1})
    del config.content["trainingService"]["machineList"][1:]
    for address in (None, "127.0.0.1", "localhost"):
        config.content["nniManagerIp"] = address
        assert f"nniManagerIp is {address or 'missing'}, and trials on" in faults(config)[0]


def test_a_folder_too_large_to_upload(written: Any) -> None:
    config = written()
    for number in range(2001):
        (config.trial_directory / str(number)).touch()
    assert "NNI takes 2000 files and 300 MB at most" in faults(config)[0]
    (config.trial_directory / ".nniignore").write_text("[0-9]*\n")
    assert faults(config) == []


def test_what_a_person_may_not_want_is_a_warning(written: Any) -> None:
    config = written(trialConcurrency=1)
    config.content["trialCommand"] = "python -m trial.distill --data digits"
    teacher, concurrency = warnings(config)
    assert "every machine trains a teacher of its own" in teacher
    assert "one of 2 machines works at a time" in concurrency
    config.content["trialCommand"] += " --teacher-dir /shared/teachers"
    assert len(warnings(config)) == 1


def test_packages_of_ones_own_have_to_be_allowed_elsewhere(written: Any) -> None:
    config = written()
    config.arguments["space_args"]["extra"] = ["their_blocks:MB(4)"]
    (warning,) = warnings(config)
    assert "import their_blocks only where their command says so; add --allow their_blocks to trialCommand" in warning
    config.content["trialCommand"] += " --allow their_blocks"
    assert warnings(config) == []


def test_the_probe_says_what_it_finds_and_why_there_is_no_way_back() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        asked = {"paths": ["~", "/no/such"], "modules": ["json", "no_such"], "address": closed.getsockname()}
        command = [sys.executable, probe.__file__, json.dumps(asked)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["python"] == list(sys.version_info[:2])
    assert found["packages"]["pytorch-lightning"]
    assert (found["absent_paths"], found["absent_modules"]) == (["/no/such"], ["no_such"])
    assert "refused" in found["no_way_back"]
