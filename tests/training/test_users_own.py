"""What users bring to ``distill``: labels, metrics and loaders of their own, generators that are theirs, Ctrl-C."""

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from nni_blockswap.errors import ConfigError, DataError, TrainingError
from nni_blockswap.metric import Metric
from nni_blockswap.training.reporting import History
from tests.training.quarters import BATCHES, HELD_OUT, TRAIN, net, run


def test_mixed_labels_are_learned_and_told_by_the_largest_share(tmp_path: Path) -> None:
    """Batches of as many images as classes, so that labels (4, 4) could pass for answers."""

    def mixed(share: float) -> Any:
        shares = [share * F.one_hot(labels, 4).float() + (1 - share) / 4 for _, labels in DataLoader(TRAIN, 4)]
        return list(zip((images for images, _ in DataLoader(TRAIN, 4)), shares, strict=True))

    still = {"lr": 1e-30, "weight_decay": 0.0, "epochs": 1}
    plain = run(tmp_path / "plain", train=list(DataLoader(TRAIN, 4)), **still)
    smoothed = run(tmp_path / "mixed", train=mixed(0.9), **still)
    assert smoothed.history[0]["train/accuracy"] == plain.history[0]["train/accuracy"]
    assert smoothed.history[0]["train/cross_entropy"] != plain.history[0]["train/cross_entropy"]


def test_a_metric_of_ones_own_stands_alone_also_where_it_is_called_accuracy(tmp_path: Path) -> None:
    def several(part: Any) -> list[tuple[Tensor, Tensor]]:
        return [(images, F.one_hot(labels, 4)) for images, labels in part]

    def all_right(outputs: Tensor, labels: Tensor) -> Tensor:
        return ((outputs > 0) == labels).all(1).float().mean()

    def binary(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, labels.float())

    options = {"train": several(BATCHES), "val": several(HELD_OUT), "loss": binary, "epochs": 1}
    result = run(tmp_path, metric=(Metric("accuracy"), all_right), **options)
    assert "train/accuracy" not in result.history[0]
    assert 0 <= result.metric <= 1


def test_a_metric_that_is_no_number_yet_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    values: list[float] = []
    metric = ("mine", lambda outputs, labels: values[0])

    class Moving(History):
        def on_train_epoch_end(self, *arguments: Any) -> None:
            del values[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nni_blockswap.training.distilling.AttentionPictures", Moving)
        values += [nan, nan, 0.25, nan]
        result = run(tmp_path, metric=metric, epochs=3)
        assert (result.metric, result.best) == (0.25, 0.25)
        said = capsys.readouterr().out
        assert "the mine on the validation set is nan in epoch 1; the training goes on." in said
        assert said.count("validation set is nan") == 1
        with pytest.raises(TrainingError, match=r"the mine on the validation set is nan after the last epoch"):
            run(tmp_path, metric=metric, epochs=4)
        values += [0.5]
        assert run(tmp_path, metric=metric, epochs=5).metric == 0.5  # mended


def test_a_teacher_whose_metric_is_no_number_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the mine on the validation set is nan, and nothing can be judged by that"):
        run(tmp_path, net(8), kd=1.0, metric=("mine", lambda outputs, labels: float("nan")))


def test_a_batch_without_a_label_that_counts_ends_nothing(tmp_path: Path) -> None:
    def own(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="sum") / (labels != -100).sum().clamp(min=1)

    images, labels = BATCHES[0]
    unknown = (images, torch.full_like(labels, -100))
    result = run(tmp_path, train=[*BATCHES, unknown], val=[*HELD_OUT, unknown], loss=own, epochs=1)
    assert 0 <= result.metric <= 1


class Fewer(list):
    """Batches that say they are one more."""

    def __len__(self) -> int:
        return super().__len__() + 1


def test_a_loader_that_gives_fewer_batches_than_it_says_is_refused_after_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an epoch has 5 batches and ended after 4; let its len"):
        run(tmp_path, train=Fewer(BATCHES), epochs=3)
    assert not list(tmp_path.glob("*.ckpt"))


class Shifted(Dataset[Any]):
    """Images that the reading process moves by a number that it draws."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = TRAIN[index]
        return image + torch.randn(1), label


def weighted() -> DataLoader[Any]:
    own = torch.Generator().manual_seed(5)
    return DataLoader(TRAIN, 32, sampler=WeightedRandomSampler([1.0] * 128, 64, generator=own))


def persistent() -> DataLoader[Any]:
    return DataLoader(Shifted(), 16, shuffle=True, num_workers=1, persistent_workers=True)


@pytest.mark.parametrize("loader", [weighted, persistent])
def test_a_run_made_longer_sees_the_batches_of_a_whole_one(loader: Any, tmp_path: Path) -> None:
    options = {"train": loader(), "schedule": "constant"}
    whole = run(tmp_path / "whole", epochs=2, **options)
    run(tmp_path / "parts", epochs=1, **{**options, "train": loader()})
    parts = run(tmp_path / "parts", epochs=2, **{**options, "train": loader()})
    assert [epoch["train/loss"] for epoch in parts.history] == [epoch["train/loss"] for epoch in whole.history]


def test_the_global_generators_go_on_where_they_stood(tmp_path: Path) -> None:
    student = net(8)

    def drawn(train: bool) -> tuple[float, float, float]:
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(1)
        if train:
            run(tmp_path, student=student, epochs=1, limit_steps=1)
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    assert drawn(train=True) == drawn(train=False)


class Interrupted(list):
    """Batches during whose second pass somebody presses Ctrl-C: the first one tries two images."""

    passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        yield self[0]
        if self.passes > 1:
            signal.raise_signal(signal.SIGINT)
        yield from self[1:]


def test_ctrl_c_is_what_it_is_everywhere(tmp_path: Path) -> None:
    listening = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, train=Interrupted(BATCHES))
    assert signal.getsignal(signal.SIGINT) is listening


def test_norms_that_are_frozen_on_purpose_stay_in_evaluation_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = net(8)
    student[1].eval().requires_grad_(False)
    run(tmp_path, student=student, epochs=1)
    assert not student[1].running_mean.any()  # as it began
    assert student[5].running_mean.any()
    assert "in evaluation mode stay, as their weights are frozen: 1." in capsys.readouterr().out


def test_parts_that_were_evaluated_are_trained_as_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as a wrapper around an evaluated network, or a backbone of one under a new head."""
    student, evaluated = net(8), net(8)
    for part in evaluated[:-1]:
        part.eval()
    history = run(tmp_path / "plain", student=student).history
    assert run(tmp_path / "evaluated", student=evaluated).history == history
    assert "evaluation mode" not in capsys.readouterr().out
