"""The comparisons that are shipped: that they are the paper's, and that their trials start."""

import json
import sys

import pytest

from nni_blockswap.architecture import Architecture
from nni_blockswap.experiment.classargs import argument_faults
from nni_blockswap.studies.comparison import Comparison
from nni_blockswap.training import options
from nni_blockswap.training.recipe import Recipe
from tests.studies.test_comparison import SPACE
from tests.trial.test_experiments import command, draw_images, load
from trial import distill

CIFAR10 = Recipe(200, 128, 0.1, 0.9, 5e-4, "cosine", 1000.0, "mse")


ON_CIFAR10 = ("figure2", "table1", "samples", "figure4")


@pytest.mark.parametrize(
    ("name", "blocks", "recipe"),
    [
        *((name, 18, CIFAR10) for name in ("cifar10_comparison", *ON_CIFAR10)),
        ("imagenet_comparison", 16, Recipe(100, 256, 0.1, 0.9, 1e-4, "step", 750.0, "mse")),
    ],
)
def test_the_shipped_comparisons_are_the_papers_and_count_their_trials(name, blocks, recipe):
    config = load(name)
    arguments = config["tuner"]["classArgs"]
    assert argument_faults(arguments) == []
    comparison = Comparison.read(arguments["comparison"])
    assert comparison.size(blocks) == arguments["students"] == config["maxTrialNumber"]
    for substitute in comparison.single:
        offered = {**arguments["space_args"], "extra": ["D"]}
        Architecture.from_choices(arguments["space"], [substitute] * blocks, offered)
    given = distill.parser().parse_args(command(config))
    assert options.recipe_from(given) == recipe
    assert options.space_args(given) == arguments["space_args"]


@pytest.fixture(scope="module")
def twenty_images(tmp_path_factory):
    """CIFAR-10's layout; teachers are kept beside it."""
    root = tmp_path_factory.mktemp("cifar10")
    for part in ("train", "test"):
        draw_images(root / "data" / part, classes=10, size=32)
    return root


def start(name, choices, space_args, home, out, monkeypatch, method):
    """Train by the shipped command for a step."""
    Architecture.from_choices(SPACE, choices, space_args).save(out / "a.json")
    given = ["--architecture", str(out / "a.json"), "--out", str(out), *command(load(name)), "--method", method]
    given += ["--data-root", str(home / "data"), "--teacher-dir", str(home), "--batch-size", "4"]
    monkeypatch.setattr(sys, "argv", ["distill", *given, "--epochs", "1", "--limit-steps", "1"])
    distill.run()
    return json.loads((out / "result.json").read_text())


def test_the_shipped_command_trains_a_reduced_network_from_the_spaces_teacher(twenty_images, tmp_path, monkeypatch):
    start("cifar10_comparison", ["S"] * 6, {"depth": 16, "width": 1}, twenty_images, tmp_path, monkeypatch, "reduced")
    teacher = json.loads(next(path for path in twenty_images.glob("*-cifar10-*/architecture.json")).read_text())
    assert teacher["space_args"]["depth"] == 40


@pytest.mark.parametrize(
    ("name", "method", "choices", "params"),
    [
        ("figure2", "single", ["G(N)"] * 18, 293_514),
        ("table1", "random", ["B(2)"] * 18, 431_834),
        ("samples", "best of 10", ["G(16)"] * 18, 406_410),
        ("figure4", "one swap", [*["S"] * 17, "G(4)"], 2_243_546 - 294_912 + 106_496 + 512),
    ],
)
def test_the_shipped_commands_start(name, method, choices, params, twenty_images, tmp_path, monkeypatch):
    result = start(name, choices, {}, twenty_images, tmp_path, monkeypatch, method)
    assert (result["method"], result["params"], result["epochs"]) == (method, params, 1)
