"""``distill`` goes on where a run was killed, or made longer, and refuses the folder of another."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from nni_blockswap.errors import StateError
from nni_blockswap.files import read_json
from nni_blockswap.training.distilling import Distilled
from nni_blockswap.training.recipe import Recipe
from tests.training.quarters import ROOT, TRAIN, net, run

PROGRAM = """
import os, signal, sys, torch
from torch.utils.data import DataLoader
from tests.training.quarters import TRAIN, VAL, net, run
from nni_blockswap.training.classification import ImageTraining
step = ImageTraining.training_step
def killed(self, batch, batch_idx):
    if self.current_epoch == 1 and batch_idx == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
ImageTraining.training_step = killed
torch.set_num_threads(1)
run(sys.argv[1], net(16, seed=1), train=DataLoader(TRAIN, 32, shuffle=True), epochs=3, beta=1.0, kd=0.5, ema=0.8)
"""


def test_a_killed_run_goes_on_and_ends_where_it_would_have(tmp_path: Path, teacher: nn.Module) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "cut")], cwd=ROOT, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    options = {"epochs": 3, "beta": 1.0, "kd": 0.5, "ema": 0.8}
    cut, whole = (
        run(tmp_path / name, teacher, student=net(8, seed), train=DataLoader(TRAIN, 32, shuffle=True), **options)
        for name, seed in (("cut", 7), ("whole", 0))  # a resumed student's weights are the checkpoint's
    )
    assert [len(result.history) for result in (cut, whole)] == [3, 3]
    assert cut.history == whole.history
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, cut.student.state_dict()[name]), name


def test_more_epochs_go_on_with_a_word_and_fewer_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path, epochs=2)
    capsys.readouterr()
    longer = run(tmp_path, epochs=4)
    said = capsys.readouterr().out
    assert f"the run of 2 epochs in '{tmp_path}' becomes one of 4, and goes on under the schedule of 4 epochs" in said
    assert [f"epoch {n}/4" in said for n in (1, 2, 3, 4)] == [False, False, True, True]
    assert longer.history[:2] == first.history
    recipe = Recipe(epochs=4, lr=0.05)
    rates = [epoch["learning_rate"] for epoch in longer.history[2:]]
    assert rates == pytest.approx([recipe.learning_rate(2), recipe.learning_rate(3)])
    assert read_json(tmp_path / "result.json")["epochs"] == 4
    settings = read_json(tmp_path / "settings.json")
    assert (settings["epochs"], settings["extended_from"]) == (4, [2])
    with pytest.raises(StateError, match="holds a run of 4 epochs, which can be made longer and not shorter"):
        run(tmp_path, epochs=3)


def test_a_moved_folder_keeps_its_best_epoch(tmp_path: Path) -> None:
    def run_judged(folder: str, epochs: int, value: float) -> Distilled:
        return run(tmp_path / folder, epochs=epochs, metric=("mine", lambda outputs, labels: value))

    first = torch.load(run_judged("here", 1, value=0.9).best_weights, weights_only=True)
    (tmp_path / "here").rename(tmp_path / "there")
    worse = run_judged("there", 2, value=0.4)
    kept = torch.load(worse.best_weights, weights_only=True)
    assert (worse.metric, worse.best) == pytest.approx((0.4, 0.9))
    assert all(torch.equal(value, kept[name]) for name, value in first.items())
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    assert run_judged("elsewhere", 2, value=0.4).best == pytest.approx(0.9)  # complete, and told once more


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"lr": 0.1}, "lr"),
        ({"student": net(4)}, "student"),
        ({"teacher": net(8)}, "teacher"),
        ({"val": list(DataLoader(TRAIN, 20))}, "data"),
        ({"init": "fresh"}, "init"),
    ],
)
def test_another_runs_folder_is_refused(other: dict[str, Any], named: str, tmp_path: Path) -> None:
    run(tmp_path, epochs=1, limit_steps=1)
    with pytest.raises(StateError, match=f"holds a run with another {named}; give this one a folder of its own"):
        run(tmp_path, **{"epochs": 1, "limit_steps": 1, **other})


def test_it_stops_early_and_stays_stopped_until_it_is_made_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_still(epochs: int) -> Distilled:
        metric = ("constant", lambda outputs, labels: 0.5)  # never becomes better
        return run(tmp_path, epochs=epochs, patience=2, metric=metric)

    assert len(run_still(9).history) == 3
    capsys.readouterr()
    assert len(run_still(9).history) == 3
    assert "epoch 4" not in capsys.readouterr().out
    assert len(run_still(10).history) == 4
