"""Teachers: wrong ones are named, one is trained once however many trials want it, a dead trial's lock falls."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import CheckpointError, ConfigError
from nni_blockswap.files import locked
from nni_blockswap.spaces import NETWORK
from nni_blockswap.tasks import make_task
from nni_blockswap.training import teachers
from nni_blockswap.training.checkpoints import read
from nni_blockswap.training.classification import ImageTraining
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.running import evaluate
from nni_blockswap.training.teachers import TeacherPlan, find_teacher, given_teacher, trained_teacher
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import SMALL, WRN
from trial import teacher

STUDENT = Architecture.from_choices(WRN, ["B(2)", "G(4)", "S"], SMALL)
OPTIONS = {"image_size": 8}
QUICK = Recipe(epochs=1).of_teacher(None)
TRIAL = ["-m", "trial.teacher", "--space", WRN, "--space-arg", *(f"{k}={v}" for k, v in SMALL.items())]
TRIAL += ["--data", "digits", "--data-option", "image_size=8", "--epochs", "1"]


@pytest.fixture
def task():
    return make_task("digits", **OPTIONS)


def plan(folder: Path, source: str | None = None) -> TeacherPlan:
    return TeacherPlan(source, folder, QUICK)


def find(task, folder: Path, source: str | None = None) -> teachers.Teacher:
    return find_teacher(STUDENT, task, OPTIONS, plan(folder, source), Machine())


def accuracy_by_hand(network, task) -> float:
    hits = count = 0
    with torch.no_grad():
        for batch in task.val_loader(50):
            images, labels = task.prepare(batch, train=False)
            for image, label in zip(images, labels, strict=True):
                hits += int(network(image[None])[0].argmax() == label)
                count += 1
    return hits / count


def test_a_space_that_draws_its_weights_has_no_original_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'original' is a network of your own .* draws new ones; name a checkp"):
        given_teacher(STUDENT.teacher(), "original")
    own = {"model": "tests.library.own:Own", "input_size": [1, 8, 8]}
    with pytest.raises(CheckpointError, match=r"and tests\.library\.own:Own draws new ones; name a checkpoint"):
        given_teacher(Architecture.original("nni_blockswap.blocks.network:NetworkSpace", own), "original")


class Trained(WideResNetSpace):
    """A space whose constructor takes weights that are there, here those of one seed."""

    def __init__(self, **arguments: Any) -> None:
        with seeded(7):
            super().__init__(**arguments)


def test_a_space_that_comes_with_its_weights_has_original_ones() -> None:
    named = Architecture.original(f"{__name__}:Trained", SMALL)
    first, again = (given_teacher(named, "original").state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_given_checkpoint_is_loaded_and_measured(task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = STUDENT.teacher().build().eval()
    torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "t.ckpt")
    teacher = find(task, tmp_path, str(tmp_path / "t.ckpt"))
    assert all(torch.equal(v, teacher.network.state_dict()[k]) for k, v in network.state_dict().items())
    assert teacher.figure == pytest.approx(accuracy_by_hand(network, task))
    assert f"validation accuracy {teacher.figure:.2%}" in capsys.readouterr().out


def test_wrong_teachers_are_named(task, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint '.*nothing'"):
        find(task, tmp_path, str(tmp_path / "nothing"))
    torch.save(STUDENT.build().state_dict(), tmp_path / "student.pt")
    with pytest.raises(CheckpointError, match=r"student\.pt' do not fit the network: .*'S' in every block"):
        find(task, tmp_path, str(tmp_path / "student.pt"))
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="holds a state_dict"):
        find(task, tmp_path, str(tmp_path / "tensor.pt"))


def test_torchvision_weights_without_a_network(task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    for name in ("resnet34", "ResNet34_Weights.IMAGENET1K_V1"):
        with pytest.raises(CheckpointError, match=rf"'{name}' cannot be downloaded .*no route.*give --teacher PATH"):
            find(task, tmp_path, f"torchvision:{name}")
    with pytest.raises(CheckpointError, match="torchvision has no weights called 'resnet35'"):
        find(task, tmp_path, "torchvision:resnet35")


def test_a_teacher_is_trained_once_and_kept(task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find(task, tmp_path)
    monkeypatch.setattr(teachers, "fit", lambda *args, **kwargs: pytest.fail("trained a second time"))
    again = find(task, tmp_path)
    assert again.figure == first.figure == evaluate(ImageTraining(again.network, task, QUICK), Machine())
    assert all(torch.equal(v, again.network.state_dict()[k]) for k, v in first.network.state_dict().items())
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == ["", ".lock", ".pt"]


def test_another_recipe_is_another_teacher(task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "fit", lambda *args, **kwargs: None)
    paths = {
        trained_teacher(STUDENT.teacher(), task, options, TeacherPlan(None, tmp_path, recipe), Machine())
        for recipe in (QUICK, Recipe(epochs=2).of_teacher(None), Recipe(epochs=1, lr=0.2).of_teacher(None))
        for options in (OPTIONS, {"image_size": 16})
        if recipe == QUICK or options == OPTIONS
    }
    assert len(paths) == 4
    # What a student alone is trained with does not make another teacher.
    beta = Recipe(epochs=9, beta=3.0, attention="norm").of_teacher(1)
    assert trained_teacher(STUDENT.teacher(), task, OPTIONS, TeacherPlan(None, tmp_path, beta), Machine()) in paths


def test_the_seed_decides_over_a_teachers_initial_weights(
    task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "fit", lambda *args, **kwargs: None)  # what is kept is then untrained
    first, again, other = (
        read(trained_teacher(STUDENT.teacher(), task, OPTIONS, TeacherPlan(None, tmp_path / folder, recipe), Machine()))
        for folder, recipe in (("one", QUICK), ("two", QUICK), ("one", replace(QUICK, seed=1)))
    )
    assert torch.equal(first["conv.weight"], again["conv.weight"])
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


def test_a_teachers_gradients_are_clipped(task, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, momentum=0.0, weight_decay=0.0, lr=0.1, clip=0.1).of_teacher(None)
    kept = trained_teacher(
        STUDENT.teacher(), task, OPTIONS, TeacherPlan(None, tmp_path, recipe), Machine(limit_steps=1)
    )
    with seeded(0):  # the recipe's
        before = STUDENT.teacher().build()
    after = read(kept)
    moved = [(after[name] - weight).detach().flatten() for name, weight in before.named_parameters()]
    assert torch.cat(moved).norm().item() == pytest.approx(0.1 * 0.1, rel=1e-3)


def test_other_images_or_fewer_steps_make_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "fit", lambda *args, **kwargs: None)
    draw = np.random.default_rng(0)
    for place in ("here", "there"):
        (tmp_path / place / "train" / "class0").mkdir(parents=True)
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / place / "train" / "class0" / "0.png")
    original = STUDENT.from_choices(WRN, ["S"] * 3, {**SMALL, "in_channels": 3, "num_classes": 1})
    paths = {
        trained_teacher(original, make_task("image-folder", str(tmp_path / place), **OPTIONS), OPTIONS, plan(tmp_path),
                        Machine(limit_steps=limit))
        for place in ("here", "there") for limit in (None, 1) for _ in range(2)
    }  # fmt: skip
    assert len(paths) == 4


def test_two_processes_train_one_teacher(task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{STUDENT.teacher().id}-digits-{teachers._fingerprint(task, OPTIONS, QUICK, Machine())}"
    log = tmp_path / "other.log"
    with FileLock(tmp_path / f"{name}.lock"):  # hold the other process back until it waits
        command = [sys.executable, *TRIAL, "--teacher-dir", str(tmp_path)]
        other = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 240
        while "waiting for it" not in log.read_text():
            assert other.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    find(task, tmp_path)
    assert other.wait(240) == 0
    texts = [log.read_text(), capsys.readouterr().out]
    assert sum("training the teacher once" in text for text in texts) == 1
    assert all(f"{name}.pt" in text for text in texts)


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "teacher.lock"
    holder = os.fork()
    if holder == 0:
        with locked(lock):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(holder, 0)[1]) == -signal.SIGKILL
    assert lock.exists()
    FileLock(lock).acquire(timeout=5).lock.release()


def test_a_kept_teacher_that_rots_is_named_with_what_to_do(task, tmp_path: Path) -> None:
    find(task, tmp_path)
    (kept,) = tmp_path.glob("*.pt")
    rotten = bytearray(kept.read_bytes())
    rotten[len(rotten) // 2] ^= 1
    kept.write_bytes(rotten)
    with pytest.raises(CheckpointError, match=r"may be damaged: .*; delete it, and the teacher is trained anew\.$"):
        find(task, tmp_path)


def test_new_options_leave_the_teachers_that_are_kept_already(task) -> None:
    """The name is made of the ten settings that there were, and of what is not as usual."""
    recipe = Recipe(epochs=3, lr=0.2, seed=5).of_teacher(None)
    told = {name: recipe.settings()[name] for name in teachers.TOLD}
    image = task.fingerprint(task.minibatch(1, seed=0, augment=False))
    digest = hashlib.sha256(json.dumps([told, OPTIONS, image, None], sort_keys=True).encode()).hexdigest()[:8]
    assert teachers._fingerprint(task, OPTIONS, recipe, Machine()) == digest
    assert teachers._fingerprint(task, OPTIONS, replace(recipe, ema=0.9), Machine()) != digest


def test_a_teacher_hardly_better_than_chance_is_warned_of(
    task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({name: 0 * value for name, value in STUDENT.teacher().build().state_dict().items()}, tmp_path / "t.pt")
    find(task, tmp_path, str(tmp_path / "t.pt"))
    assert "warning: that is hardly better than guessing" in capsys.readouterr().out


def test_a_network_of_ones_own_is_trained_from_the_command_line(tmp_path: Path) -> None:
    own = [
        "--model",
        "tests.library.own:own",
        "--input-size",
        "1,8,8",
        "--data",
        "digits",
        "--data-option",
        "image_size=8",
    ]
    few = ["--epochs", "1", "--limit-steps", "1", "--teacher-dir", str(tmp_path), "--out", str(tmp_path / "mine")]
    teachers.run(teacher.parser().parse_args([*own, *few]))
    named = Architecture.original(NETWORK, {"model": "tests.library.own:own", "input_size": [1, 8, 8]})
    weights = read(tmp_path / "mine" / "weights.pt")
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in named.build().state_dict().items()
    }
    with pytest.raises(ConfigError, match="--model MODULE:FUNCTION or --architecture FILE says whose teacher"):
        teachers.run(teacher.parser().parse_args(["--data", "digits", *few]))
