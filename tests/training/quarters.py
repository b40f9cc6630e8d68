"""Which of an image's four quarters is bright: a task that a small network learns in a second, and a run on it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nni_blockswap.training.distilling import Distilled, distill

ROOT = Path(__file__).parents[2]


def net(width: int, seed: int = 0, classes: int = 4) -> nn.Sequential:
    """A small network of two stages."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    )  # fmt: skip


def examples(count: int, seed: int) -> TensorDataset:
    """Noise with one bright quarter, which is the class."""
    draw = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(count, 1, 8, 8, generator=draw), torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 2.0
    return TensorDataset(images, labels)


TRAIN, VAL = examples(128, 0), examples(40, 1)


BATCHES, HELD_OUT = list(DataLoader(TRAIN, 32)), list(DataLoader(VAL, 20))


def run(out: Path, teacher: nn.Module | None = None, **options: Any) -> Distilled:
    given = {"train": BATCHES, "val": HELD_OUT, "epochs": 2, "beta": 0, "lr": 0.05, **options}
    student = given.pop("student", None) or net(8)
    return distill(student, teacher, out=out, **given)


def accuracy(network: nn.Module) -> float:
    images, labels = VAL.tensors
    with torch.no_grad():
        return (network.eval()(images).argmax(1) == labels).float().mean().item()
