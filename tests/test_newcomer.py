"""A newcomer installs the wheel into a fresh environment, and goes through README and how-tos there.

The commands are those that the pages show, on images that are made here, with fewer samples, steps and epochs.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import WRN
from tests.test_docs import PAGES, ROOT, RUN, lines

pytestmark = pytest.mark.slow  # lays out an environment of 6 GB, and runs an experiment and whatever the pages show

SMALLER = {
    "blockswap search": "--samples 4 --batch-size 4",
    "blockswap library": "--steps 2 --batch-size 4 --held-out 8",
    "blockswap report": "--allow model",
    "python -m trial.distill": "--epochs 1 --batch-size 8",
    "python -m trial.teacher": "--epochs 1 --batch-size 8",
}
"""Options that outweigh those on the page; and what the page says of networks of one's own."""

BEFORE = """
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, "DIR")
from model import make

model, example_input = make(width=8), torch.zeros(1, 1, 16, 16)
train_loader = val_loader = DataLoader(TensorDataset(torch.randn(512, 1, 16, 16), torch.arange(512) % 10), 64)
"""
"""What README's Python takes for granted; ``blockswap init DIR`` has written the model."""

TRAINED = """
import torch
import torchvision

torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), "mine.pt")
"""
"""What docs/own_network.md's commands take for granted: the network's trained weights."""


@dataclass(frozen=True)
class Newcomer:
    """A person with a home of their own, who has nothing but the environment."""

    home: Path

    def run(self, command: str, folder: Path) -> str:
        """What the shell says; fails where the command does."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        path = f"{self.home / 'environment' / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=folder,
            env={**kept, "HOME": str(self.home), "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
        return done.stdout

    def python(self, blocks: list[str], folder: Path) -> None:
        """Run a page's blocks of Python, one after the other."""
        (folder / "page.py").write_text("\n\n".join(blocks), encoding="utf-8")
        self.run("python page.py", folder)

    def page(self, page: Path, folder: Path, experiment: str = "") -> str:
        """Run the commands of a page, but for those on files that a checkout alone has."""
        said = [
            self.run(self.smaller(line, experiment), folder)
            for line in lines(page.read_text(encoding="utf-8"))
            if "experiments/" not in line
        ]
        assert said
        return "".join(said)

    def smaller(self, line: str, experiment: str) -> str:
        """A page's line with what it leaves open, and less to do."""
        line = line.replace("--data-root DIR", f"--data-root {self.home}/images")
        line = line.replace("--space SPACE", f"--space {WRN} --space-arg depth=10 width=1")
        line = re.sub(r"\bID\b", experiment, line)
        options = [options for command, options in SMALLER.items() if line.startswith(command)]
        return " ".join([line, *options])


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    """The wheel, and what the pages ask for beside it, in an environment that has nothing else."""
    home = tmp_path_factory.mktemp("newcomer")
    source = home / "source"  # as building a wheel writes into it
    for name in ("nni_blockswap", "search_spaces", "trial"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", home / "environment"], check=True)
    pip = [home / "environment" / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, source], check=True)
    subprocess.run([*pip, "onnx", "onnxscript", "onnxruntime"], check=True)  # docs/export.md
    shutil.rmtree(source)
    generator = np.random.default_rng(0)
    for number in range(100):
        path = home / "images" / ("train" if number < 80 else "test") / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    return Newcomer(home)


@pytest.fixture(scope="module")
def readme(newcomer: Newcomer) -> tuple[Path, str]:
    """The folder in which README's commands were run, and the id of the experiment that one of them has started."""
    folder = newcomer.home / "readme"
    folder.mkdir()
    said = newcomer.page(ROOT / "README.md", folder)
    found = re.search(r"nnictl view (\w+)", said)
    assert found is not None, said
    return folder, found[1]


def python_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_readme(newcomer: Newcomer, readme: tuple[Path, str]) -> None:
    newcomer.python([BEFORE, *python_of(ROOT / "README.md")], readme[0])
    assert (readme[0] / "student.pt2").exists()


def test_export(newcomer: Newcomer, readme: tuple[Path, str], tmp_path: Path) -> None:
    page = ROOT / "docs" / "export.md"
    shutil.copytree(readme[0] / "runs" / "400K" / "student", tmp_path / "runs" / "student")
    newcomer.page(page, tmp_path)
    newcomer.python(python_of(page), tmp_path / "out")


def test_the_web_pages_commands(newcomer: Newcomer, readme: tuple[Path, str]) -> None:
    folder = readme[0] / "DIR"  # of the config
    said = newcomer.page(ROOT / "docs" / "web_page.md", folder, experiment=readme[1])
    assert readme[1] in said
    assert (folder / "DIR" / "report.png").exists()


@pytest.mark.parametrize("name", ["own_budget", "own_network", "library"])
def test_the_commands_of_a_how_to(newcomer: Newcomer, name: str, tmp_path: Path) -> None:
    newcomer.python([TRAINED], tmp_path)
    newcomer.page(ROOT / "docs" / f"{name}.md", tmp_path)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_python_of_a_how_to(newcomer: Newcomer, page: Path, tmp_path: Path) -> None:
    newcomer.python(python_of(page), tmp_path)


def test_no_page_with_commands_is_left_out() -> None:
    elsewhere = {"many_machines"}  # tests/experiment/test_several_machines.py
    with_commands = {page.stem for page in PAGES if list(lines(page.read_text(encoding="utf-8")))}
    assert with_commands - elsewhere == {
        "README",
        "index",
        "export",
        "web_page",
        "own_budget",
        "own_network",
        "library",
    }
