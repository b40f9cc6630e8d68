"""Fixtures: a small space, and real images where this machine has them."""

import json
import os
import re
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

WRN = "search_spaces.wide_resnet:WideResNetSpace"
SMALL = {"depth": 10, "width": 1, "image_size": 8, "in_channels": 1}
"""Three blocks, 16 to 64 channels: every kind of site, in milliseconds."""


def pytest_configure(config: pytest.Config) -> None:
    """Make machines alike: no GPU unless its tests are asked for, and Ctrl-C reaches what a test starts."""
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, which hands that on
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def coco_folder(data_root: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's layout: real images where this machine has them, else generated ones."""
    try:
        return data_root("coco-tiny")
    except pytest.skip.Exception:
        return generated_coco(tmp_path_factory.mktemp("coco"))


def generated_coco(root: Path, count: int = 12) -> Path:
    """COCO's layout with ``count`` images a part: dark noise with one or two bright rectangles, a colour a class."""
    draw = np.random.default_rng(0)
    height, width = 96, 128
    (root / "annotations").mkdir()
    for part in ("train2017", "val2017"):
        (root / part).mkdir()
        annotations: list[dict[str, object]] = []
        for number in range(1, count + 1):
            pixels = draw.integers(0, 80, (height, width, 3), dtype=np.uint8)
            for half in range(1 + number % 2):
                category, w, h = (int(draw.integers(*limits)) for limits in ((1, 4), (36, 56), (36, 80)))
                x, y = 64 * half + int(draw.integers(64 - w)), int(draw.integers(height - h))
                pixels[y : y + h, x : x + w, category - 1] = 250
                corners = [float(one) for one in (x, y, x + w, y, x + w, y + h, x, y + h)]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": [x, y, w, h],
                     "area": w * h, "iscrowd": 0, "segmentation": [corners]}
                )  # fmt: skip
            Image.fromarray(pixels).save(root / part / f"{number}.jpg")
        content = {
            "images": [
                {"id": n, "file_name": f"{n}.jpg", "height": height, "width": width} for n in range(1, count + 1)
            ],
            "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}, {"id": 3, "name": "blue"}],
            "annotations": annotations,
        }
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root
