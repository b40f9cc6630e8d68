"""What the tests of trials share: a small student, and ways to start its training."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import TensorDataset

from nni_blockswap.architecture import Architecture
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.loader import LoaderTask
from nni_blockswap.training.program import main
from tests.conftest import SMALL, WRN
from trial import distill

ROOT = Path(__file__).parents[2]
STUDENT = Architecture.from_choices(WRN, ["B(2)", "G(4)", "BG(2,4)"], SMALL).scored(1.5, {})
RECIPE = ["--data", "digits", "--data-option", "image_size=8", "--batch-size", "128", "--epochs", "3"]
ALONE = [*RECIPE, "--limit-steps", "4"]


def own_digits(root: str | None) -> LoaderTask:
    """256 digits as a data set of one's own: single images."""
    images, labels = make_task("digits", root, image_size=8).minibatch(256, seed=0, augment=False)
    task = LoaderTask(TensorDataset(images, labels), TensorDataset(images[:64], labels[:64]))
    task.num_classes = 10
    return task


def run_here(monkeypatch: pytest.MonkeyPatch, arguments: list[str], module=distill) -> None:
    monkeypatch.setattr(sys, "argv", ["trial", *arguments])
    main("trial", module.run)


def run_apart(code: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    start = "import os, resource, signal, sys, torch; torch.set_num_threads(1)\n"
    start += "from trial import distill; from nni_blockswap.training import distillation_trial, program\n"
    return subprocess.run(
        [sys.executable, "-c", start + code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def files_in(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()} if out.exists() else set()
