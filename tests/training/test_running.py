"""How a trial runs and ends: one sentence of one process, and no step on less than a batch."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import distributed, nn
from torch.utils.data import IterableDataset, TensorDataset

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError, DataError, TrainingError
from nni_blockswap.files import read_json
from nni_blockswap.tasks.loader import LoaderTask
from nni_blockswap.training.classification import ImageTraining
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.program import main
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.running import evaluate, fit, share
from tests.conftest import SMALL, WRN
from tests.trial.starting import run_here


def test_a_training_set_smaller_than_a_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "class0").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / "class0" / "0.png")
    Architecture.from_choices(WRN, ["S"] * 3, {**SMALL, "in_channels": 3, "num_classes": 1}).save(tmp_path / "a.json")
    arguments = ["--architecture", str(tmp_path / "a.json"), "--out", str(tmp_path / "out"), "--beta", "0"]
    data = ["--data", "image-folder", "--data-root", str(tmp_path), "--data-option", "image_size=8"]
    with pytest.raises(
        SystemExit, match=r"^trial: the training set has 1 images, less than one batch; lower --batch-size"
    ):
        run_here(monkeypatch, [*arguments, *data, "--batch-size", "2"])
    assert not (tmp_path / "out" / "result.json").exists()


class Endless(IterableDataset[Any]):
    """Examples of which nobody knows how many there are."""

    def __iter__(self) -> Any:
        return itertools.repeat((torch.rand(1, 2, 2), 1))


def test_data_of_ones_own_that_make_no_epoch_are_refused(tmp_path: Path) -> None:
    network, recipe = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), Recipe(beta=0, batch_size=8, epochs=1)
    six = TensorDataset(torch.rand(6, 1, 2, 2), torch.arange(6) % 2)
    for task, sentence in (
        (LoaderTask(six, six), "the training set makes no whole batch of 8 images; lower --batch-size"),
        (LoaderTask([six.tensors], []), "the validation set gives no batch"),
    ):
        with pytest.raises(DataError, match=sentence):
            fit(ImageTraining(network, task, recipe), tmp_path, Machine())
    endless = LoaderTask(Endless(), [six.tensors])
    with pytest.raises(ConfigError, match="warmup counts epochs, and train does not say how many batches"):
        fit(ImageTraining(network, endless, replace(recipe, warmup=2)), tmp_path, Machine())
    with pytest.raises(DataError, match="the validation set gives no batch"):
        evaluate(ImageTraining(network, task, recipe), Machine())


LOST = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2301"


@pytest.mark.parametrize(
    ("error", "first", "other"),
    [
        (TrainingError("it diverged."), "trial: it diverged.", ""),
        (ConfigError("no."), "trial: no.", ""),
        (RuntimeError(LOST), "trial: another process of this run has failed; what it said tells why.", ""),
        (distributed.DistBackendError("NCCL error"), "trial: another process of this run has failed; .*", ""),
        (DataError("'a.jpg' cannot be read."), r"trial: 'a\.jpg' cannot be read\.", "trial: 'a.jpg' cannot be read."),
    ],
)
def test_of_several_processes_one_speaks(
    error: Exception, first: str, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        raise error

    with pytest.raises(SystemExit, match=f"^{first}$"):
        main("trial", run)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as quiet:
        main("trial", run)
    assert (str(quiet.value), quiet.value.code) == (other, 2)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (TrainingError("it diverged."), {"final": True, "sentence": "it diverged."}),
        (ConfigError("no."), {"final": True, "sentence": "no."}),
        (SystemExit(2), {"final": True, "sentence": "the trial's command is wrong."}),
        (KeyboardInterrupt(), {"final": False, "sentence": "stopped by Ctrl-C."}),
        (OSError(28, "No space left on device"), None),
        (DataError("'a.jpg' cannot be read."), None),
        (SystemExit(1), None),
    ],
    ids=repr,
)
def test_under_nni_a_trial_says_whether_its_student_can_be_trained(
    error: BaseException, word: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run() -> None:
        raise error

    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path))
    with pytest.raises(SystemExit):
        main("trial", run)
    left = tmp_path / "failure.json"
    assert (read_json(left) if left.exists() else None) == word


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    def run() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        main("trial", run)


def test_the_sentence_of_a_reading_process_is_found_in_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        trace = (
            "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
        )
        raise DataError(f"{trace}nni_blockswap.errors.DataError: the image 'a.jpg' cannot be read.\n")

    with pytest.raises(SystemExit, match=r"^trial: the image 'a\.jpg' cannot be read\.$"):
        main("trial", run)


def test_a_sentence_that_quotes_another_error_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise ConfigError("'a:b' fails: ValueError: no such thing.")

    with pytest.raises(SystemExit, match=r"^trial: 'a:b' fails: ValueError: no such thing\.$"):
        main("trial", run)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="--batch-size 7 cannot be shared evenly by 2 processes"):
        share(7, SimpleNamespace(world_size=2))
