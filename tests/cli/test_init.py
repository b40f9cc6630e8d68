"""A folder to start from: what is written is sound, and nothing is overwritten."""

import json
from pathlib import Path

import pytest
import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.cli import main
from nni_blockswap.cli.check import find_faults
from nni_blockswap.experiment.config import Config
from nni_blockswap.spaces import NETWORK, cost_table, with_space


def test_what_is_written_has_no_fault_and_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "mine"
    assert main(["init", str(folder)]) == 0
    assert "blockswap run config.yml" in capsys.readouterr().out
    assert find_faults(folder / "config.yml") == []
    monkeypatch.syspath_prepend(str(folder))
    given = with_space(Config(folder / "config.yml").arguments)
    table = cost_table(given["space"], given["space_args"])
    listed = json.loads((folder / "search_space.json").read_text())
    assert [listed[label]["_value"] for label in table.labels] == [list(names) for names in table.candidates]
    student = Architecture.from_choices(NETWORK, [names[-1] for names in table.candidates], given["space_args"]).build()
    assert student(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "model.py' is there already" in capsys.readouterr().err
    assert (tmp_path / "model.py").read_text() == "mine"
    assert not (tmp_path / "config.yml").exists()
