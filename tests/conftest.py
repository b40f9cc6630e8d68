"""Fixtures: a small space, and real images where this machine has them."""

import os
import tarfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

WRN = "search_spaces.wide_resnet:WideResNetSpace"
SMALL = {"depth": 10, "width": 1, "image_size": 8, "in_channels": 1}
"""Three blocks, 16 to 64 channels: every kind of site, in milliseconds."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the suite runs a process a core; and sums come out the same everywhere


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once, whether or not this machine has a network."""

    def refused(*_: object, **__: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refused)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory):
    """A function: name of a data set -> its unpacked folder; skips where the machine does not have it."""
    home = Path(os.environ.get("BLOCKSWAP_DATA", Path(__file__).parents[2] / "shared" / "data"))

    def unpack(name: str) -> Path:
        archive = home / f"{name}.tar.xz"
        if (home / name).is_dir():
            return home / name
        if not archive.exists():
            pytest.skip(f"needs real images: {archive.name} is not in '{home}' (set BLOCKSWAP_DATA)")
        target = tmp_path_factory.mktemp("data")
        with tarfile.open(archive) as content:
            content.extractall(target, filter="data")
        return target / name

    return unpack
