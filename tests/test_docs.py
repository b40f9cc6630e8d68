"""The documents: their Python runs, their commands have the options that they name, their links lead somewhere."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.site import FAMILIES
from nni_blockswap.cli import main, parser
from nni_blockswap.experiment.service import ended
from nni_blockswap.experiment.students import identity, result_of
from nni_blockswap.methods import METHODS
from nni_blockswap.scoring.proxies import PROXIES
from nni_blockswap.studies.trials import read_trials
from tests.conftest import SMALL, WRN

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
RUN = [page for page in PAGES if page.stem.startswith("own_")]
"""Pages whose Python runs as it stands; elsewhere it goes on from files that a run of minutes has left."""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder to work in, and registries that forget what a page registers."""
    monkeypatch.chdir(tmp_path)
    for registry in (FAMILIES, METHODS, PROXIES):
        loaded: dict[str, Any] = registry._loaded  # type: ignore[attr-defined]
        monkeypatch.setattr(registry, "_loaded", dict(loaded))


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, own: None) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_a_trial_of_ones_own_leaves_what_its_readers_want(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script as it stands, given what the tuner hands out; NNI itself is left out."""
    (script,) = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs/own_network.md").read_text(), re.DOTALL | re.MULTILINE)
    handed_out = Architecture.from_choices(WRN, ["B(2)", "S", "G(4)"], SMALL).scored(2.0, {}).to_parameters(1)
    batches = [(torch.rand(16, 1, 8, 8), torch.arange(16) % 10)]
    reports: list[Any] = []
    data, link = ModuleType("my_data"), ModuleType("nni")
    vars(data).update(train=batches, val=batches)
    vars(link).update(get_next_parameter=lambda: {**handed_out, "method": "blockswap", "variant": "60%", "seed": 3})
    vars(link).update(report_intermediate_result=reports.append, report_final_result=reports.append)
    monkeypatch.setitem(sys.modules, "my_data", data)
    monkeypatch.setitem(sys.modules, "nni", link)
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path))
    exec(compile(script, "train_mine.py", "exec"), {"__name__": "__main__"})

    ((folder, result),) = ended(tmp_path)
    name = f"{handed_out['architecture_id']} blockswap 60% 3"
    assert identity(result) == name
    assert result_of({}, reports[-1]) == (name, result["accuracy"])  # whatever NNI records beside it
    assert reports[:-1] == pytest.approx([*reports[:-2], result["accuracy"]])
    (trial,) = read_trials([tmp_path])
    assert (trial.method, trial.seed, trial.error) == ("blockswap", 3, pytest.approx(100 - 100 * result["accuracy"]))
    assert main(["export", str(folder), "--out", str(tmp_path / "out"), "--format", "safetensors"]) == 0


def lines(text: str) -> Iterator[str]:
    """The lines of this project's commands in the blocks of code of ``text``, without what is said behind them."""
    is_fenced = False
    for line in re.sub(r"\\\n[\s#]*", "", text).splitlines():
        is_fenced ^= line.startswith("```")
        if is_fenced or re.match(r"#? {4}", line):
            shown = re.split(r"\s{3,}", line.strip("# "))[0]
            if shown.startswith(("blockswap ", "python -m trial.")) and "..." not in shown:
                yield shown


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command."""
    for line in lines(text):
        parts = (part.strip() for part in line.split("&&"))
        yield from (shlex.split(part) for part in parts if part.startswith(("blockswap ", "python -m trial.")))


@pytest.mark.parametrize(
    "path", [*PAGES, *sorted((ROOT / "experiments").glob("*.yml")), ROOT / "config.yml"], ids=lambda path: path.name
)
def test_commands_have_the_options_that_they_are_shown_with(path: Path) -> None:
    def refuse(self: argparse.ArgumentParser, message: str) -> NoReturn:
        pytest.fail(f"{self.prog}: {message}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", refuse)
        for program, *words in commands(path.read_text(encoding="utf-8")):
            if program == "blockswap":
                parser().parse_args(words)
            else:
                import_module(words[1]).parser().parse_args(words[2:])


def test_commands_are_found() -> None:
    text = "blockswap is a word\n    blockswap status ID     one\n\n"
    text += "```\nblockswap space A:B --budget 400K \\\n    macs=9M\n```\n"
    space = ["blockswap", "space", "A:B", "--budget", "400K", "macs=9M"]
    assert list(commands(text)) == [["blockswap", "status", "ID"], space]
    assert len(list(commands((ROOT / "README.md").read_text(encoding="utf-8")))) > 4


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=lambda page: page.name)
def test_links_of_pages_outside_the_site_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_site_is_built_and_none_of_its_links_leads_nowhere(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert "nni_blockswap.cost.budget.Budget" in reference
    assert "macs=90M-5%" in reference  # an example of a docstring
