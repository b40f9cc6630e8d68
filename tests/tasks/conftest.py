from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def tiny_cifar(tmp_path: Path) -> Path:
    """Ten classes of 32x32 images, 3 for training and 2 for testing each; the pixels tell them apart."""
    draw = np.random.default_rng(0)
    for part, each in (("train", 3), ("test", 2)):
        for label in range(10):
            folder = tmp_path / part / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(each):
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path
