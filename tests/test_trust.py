"""A file has no code run but that of packages that it may name."""

import json
import sys
from pathlib import Path

import pytest

from nni_blockswap import Architecture
from nni_blockswap.cli import main
from nni_blockswap.errors import SpaceError
from nni_blockswap.library.library import write_about
from nni_blockswap.spaces import complete_args
from nni_blockswap.trust import distrust
from tests.conftest import SMALL, WRN

NETWORK = "nni_blockswap.blocks.network:NetworkSpace"
CODE = """
import os, pathlib
pathlib.Path("ran").write_text("")
from search_spaces.wide_resnet import WideResNetSpace

class Mine(WideResNetSpace):
    pass
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with a module of somebody's, and a file that names its space."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("nni_blockswap.trust._always", [])
    (tmp_path / "somebodys.py").write_text(CODE)
    content = {"space": "somebodys:Mine", "space_args": SMALL, "choices": ["G(4)"] * 3}
    (tmp_path / "a.json").write_text(json.dumps(content))
    yield tmp_path
    sys.modules.pop("somebodys", None)


def test_a_files_module_is_not_imported_unless_it_is_allowed(elsewhere):
    with pytest.raises(SpaceError, match=r"'a.json' .* names 'somebodys'.*--allow somebodys .*allow=\['somebodys'\]"):
        Architecture.load("a.json")
    assert not Path("ran").exists()
    assert Architecture.load("a.json", allow=["somebodys"]).space == "somebodys:Mine"
    assert Path("ran").exists()
    assert Architecture.load("a.json").params  # imported, it is this process's own


def test_on_the_command_line(elsewhere, capsys):
    assert main(["show", "a.json"]) == 2
    assert not Path("ran").exists()
    assert "--allow somebodys" in capsys.readouterr().err
    assert main(["show", "a.json", "--allow", "somebodys"]) == 0


def test_a_librarys_file_names_no_module_either(elsewhere, capsys):
    arguments = complete_args(WRN, {**SMALL, "extra": ["somebodys:Mine(1)"]})
    about = {"space": WRN, "space_args": arguments, "labels": ["block_00"], "data": "digits", "teacher_digest": ""}
    write_about(Path("lib"), {**about, "steps": {"block_00": 1}, "seed": 0})
    command = ["search", "--space", WRN, "--proxy", "library", "--library", "lib", "--budget", "60%", "--out", "new"]
    assert main(command) == 2
    assert not Path("ran").exists()
    said = capsys.readouterr().err
    assert said.startswith("blockswap: with the arguments that the library in 'lib' has: it names 'somebodys'")
    assert "--allow somebodys" in said
    assert main([*command, "--allow", "somebodys"]) == 2  # which is no family of substitutes
    assert Path("ran").exists()


@pytest.mark.parametrize(
    "model",
    ["os:system", "builtins:exec", "subprocess:run", "nni_blockswap.files:write_text", "nni_blockswap.files:os.system",
     "torchvision.datasets.utils:download_url", "torchvision.models.resnet:torch.load", "torch:load", "numpy:load",
     "nni_blockswap.blocks.network:json.loads"],
)  # fmt: skip
def test_a_file_has_no_function_called_that_is_no_network(model):
    content = {"space": NETWORK, "space_args": {"model": model}, "choices": []}
    with pytest.raises(SpaceError, match="it names"):
        Architecture.from_json(content)


def test_a_file_may_name_torchvisions_networks_and_ones_own():
    table = {"model": "torchvision.models:resnet18", "input_size": [3, 32, 32]}
    assert Architecture.from_json({"space": NETWORK, "space_args": table, "choices": ["S"] * 8}).params == 11_689_512
    with distrust(()):
        assert Architecture.from_choices(WRN, ["S"] * 3, SMALL)


def test_what_is_beside_a_substitute_is_not_imported():
    content = {"space": WRN, "space_args": {**SMALL, "extra": ["antigravity:G(4)"]}, "choices": ["S"] * 3}
    with pytest.raises(SpaceError, match="it names 'antigravity'"):
        Architecture.from_json(content)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("line", ["raise SystemExit", "import sys; sys.exit(3)", "1/0", "raise KeyError"])
def test_a_module_that_ends_python_is_a_fault_of_the_module(line, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ending.py").write_text(line)
    with pytest.raises(SpaceError, match="the space 'ending:Space' cannot be imported"):
        Architecture.from_choices("ending:Space", [])
