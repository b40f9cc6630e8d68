"""A teacher on digits of 8x8, and a library of all its blocks' candidates, built once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nni_blockswap import Architecture
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.library.building import build
from nni_blockswap.library.library import Library
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.tasks import make_task
from nni_blockswap.training import checkpoints
from tests.conftest import SMALL, WRN

SPACE_ARGS = {**SMALL, "extra": ["W(1/2)", "W(1/4)", "tests.library.copies:COPY(1)"]}


def make_teacher(path: Path, seed: int = 0) -> Path:
    """Random weights, and BN statistics of the digits."""
    with seeded(seed):
        network: Any = Architecture.from_choices(WRN, ["S"] * 3, SPACE_ARGS).build()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.3)
    task = make_task("digits", image_size=8)
    with torch.no_grad():
        for index in range(8):
            network.train()(task.minibatch(64, seed=1, index=index)[0])
    checkpoints.save(checkpoints.plain_state(network), path)
    return path


def settings(teacher: Path, **others: Any) -> LibrarySettings:
    plain = {"steps": 6, "batch_size": 64, "held_out": 128, "device": "cpu", "data_options": {"image_size": 8}}
    return LibrarySettings(space=WRN, space_args=SPACE_ARGS, teacher=str(teacher), data="digits", **{**plain, **others})


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_teacher(tmp_path_factory.mktemp("teacher") / "weights.pt")


@pytest.fixture(scope="session")
def library(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    torch.set_num_threads(1)
    return build(settings(teacher), tmp_path_factory.mktemp("library"))


def copy_of(library: Library, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in library.folder.glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
