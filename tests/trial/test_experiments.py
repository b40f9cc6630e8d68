"""The shipped experiments: the paper's recipes, and that their very commands start, for a few steps on small data."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.io import write_jpeg
from torchvision.models import resnet34

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.nni_format import read_candidates
from nni_blockswap.experiment.classargs import read_settings
from nni_blockswap.spaces import cost_table
from nni_blockswap.training import options
from nni_blockswap.training.program import main
from nni_blockswap.training.recipe import Recipe
from trial import distill

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load(name: str) -> dict:
    return yaml.safe_load((EXPERIMENTS / f"{name}.yml").read_text())


def command(config: dict) -> list[str]:
    interpreter, *arguments = shlex.split(config["trialCommand"])
    assert [interpreter, *arguments[:2]] == ["python", "-m", "trial.distill"]
    return arguments[2:]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("cifar10_wrn40_2", Recipe(200, 128, 0.1, 0.9, 5e-4, "cosine", 1000.0, "mse")),
        ("imagenet_resnet34", Recipe(100, 256, 0.1, 0.9, 1e-4, "step", 750.0, "mse")),
    ],
)
def test_recipe_and_search_are_the_papers(name: str, recipe: Recipe) -> None:
    config = load(name)
    assert options.recipe_from(distill.parser().parse_args(command(config))) == recipe
    arguments = config["tuner"]["classArgs"]
    search_space = json.loads((EXPERIMENTS / config["searchSpaceFile"]).read_text())
    settings, students = read_settings(arguments, search_space, EXPERIMENTS.parent)
    assert settings.samples == 1000
    assert students == config["maxTrialNumber"]
    table = cost_table(arguments["space"], arguments["space_args"])
    listed = read_candidates(EXPERIMENTS / config["searchSpaceFile"])
    assert listed == {label: list(names) for label, names in zip(table.labels, table.candidates, strict=True)}


def draw_images(folder: Path, classes: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(2):
            pixels = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
            write_jpeg(pixels, str(folder / f"class{label}" / f"{index}.jpg"))


def start(monkeypatch: pytest.MonkeyPatch, name: str, out: Path, *replaced: str) -> dict:
    """Run the shipped command, the last value of an option counting, on the budget's cheapest kind of network."""
    arguments = load(name)["tuner"]["classArgs"]
    table = cost_table(arguments["space"], arguments["space_args"])
    student = Architecture.from_choices(arguments["space"], ["G(N)"] * len(table.labels), arguments["space_args"])
    student.save(out / "student.json")
    shortened = ["--epochs", "1", "--limit-steps", "2", "--devices", "1", "--workers", "0", *replaced]
    given = ["--architecture", str(out / "student.json"), "--out", str(out), *command(load(name)), *shortened]
    monkeypatch.setattr(sys, "argv", ["trial.distill", *given])
    main("trial.distill", distill.run)
    return json.loads((out / "result.json").read_text())


def start_cifar10(monkeypatch: pytest.MonkeyPatch, data: Path, out: Path) -> dict:
    kept = ["--data-root", str(data), "--batch-size", "4", "--teacher-dir", str(out / "teachers")]
    return start(monkeypatch, "cifar10_wrn40_2", out, *kept)


def test_cifar10_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        draw_images(tmp_path / "data" / part, classes=10, size=32)
    result = start_cifar10(monkeypatch, tmp_path / "data", tmp_path / "out")
    assert (result["params"], result["epochs"]) == (293_514, 1)
    assert 0 <= result["teacher_accuracy"] <= 1


@pytest.mark.slow  # unpacks 60,000 images
def test_cifar10_starts_on_real_images(data_root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_cifar10(monkeypatch, data_root("cifar10"), tmp_path / "out")["epochs"] == 1


def start_imagenet(monkeypatch: pytest.MonkeyPatch, data: Path, out: Path) -> dict:
    torch.save(resnet34().state_dict(), data / "resnet34.pth")  # as torchvision's own file, but untrained
    given = ["--data-root", str(data), "--batch-size", "2", "--teacher", str(data / "resnet34.pth")]
    return start(monkeypatch, "imagenet_resnet34", out, *given)


def test_imagenet_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        draw_images(tmp_path / "data" / part, classes=2, size=64)
    result = start_imagenet(monkeypatch, tmp_path / "data", tmp_path / "out")
    assert result["epochs"] == 1
    assert 0 <= result["teacher_accuracy"] <= 1


def test_imagenet_starts_on_real_images(data_root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for part in ("train", "val"):  # the sample has no images of its own for validation
        (tmp_path / "data" / part).symlink_to(data_root("imagenet-sample") / "train")
    result = start_imagenet(monkeypatch, tmp_path / "data", tmp_path / "out")
    assert result["epochs"] == 1
    assert {"accuracy", "top5", "teacher_accuracy"} <= result.keys()
