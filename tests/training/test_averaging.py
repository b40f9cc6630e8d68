"""The moving average: its formula, what is judged and published, and that it survives a kill."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError
from nni_blockswap.tasks import make_task
from nni_blockswap.training.averaging import averaged
from nni_blockswap.training.checkpoints import read
from nni_blockswap.training.classification import ImageTraining
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.running import fit
from tests.conftest import SMALL, WRN

STUDENT = Architecture.from_choices(WRN, ["B(2)", "G(4)", "S"], SMALL)


@pytest.mark.parametrize("decay", [0.2, 0.9, 0.999])
def test_the_average_is_that_of_the_formula(decay: float) -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = averaged(network, decay)
    expected = 0.0
    for step, value in enumerate([3.0, 5.0, -2.0, 8.0, 1.0, 1.5]):
        with torch.no_grad():
            network[0].weight.fill_(value)
            network[1].running_mean.fill_(-value)
            network[1].num_batches_tracked.fill_(step)
        average.update_parameters(network)
        share = min(decay, (1 + step) / (10 + step)) if step else 0.0
        expected = share * expected + (1 - share) * value
        assert average.module[0].weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.module[1].running_mean.item() == pytest.approx(-expected, rel=1e-5)
        assert average.module[1].num_batches_tracked.item() == step
    assert not any(weight.requires_grad for weight in average.parameters())


def test_whole_tensors_are_averaged_in_place_and_masks_are_copied() -> None:
    network = nn.Linear(3, 3)
    network.register_buffer("mask", torch.tensor([0.0, 1.0, -torch.inf]))
    average = averaged(network, 0.5)
    weight, counted = average.module.weight, []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counted.append(str(function))
            return function(*args, **(kwargs or {}))

    average.update_parameters(network)
    network.mask[1] = 5.0
    with Counting():
        average.update_parameters(network)
    assert average.module.mask.tolist() == [0.0, 5.0, -torch.inf]
    assert average.module.weight is weight
    assert counted.count("aten.lerp_.Scalar") == 3
    assert not any("where" in name for name in counted)


def test_masked_weights_have_no_average() -> None:
    network = nn.Sequential(nn.Linear(3, 3))
    prune.l1_unstructured(network[0], "weight", 2)
    with pytest.raises(ConfigError, match="--ema needs weights of their own"):
        averaged(network, 0.9)


class Noted(ImageTraining):
    """Keeps its weights after each step."""

    def on_train_batch_end(self, *arguments) -> None:
        super().on_train_batch_end(*arguments)
        self.__dict__.setdefault("noted", []).append(self.network.fc.weight.detach().clone())


def train(out: Path, epochs: int, **recipe) -> Noted:
    torch.manual_seed(0)
    module = Noted(STUDENT.build(), make_task("digits", image_size=8), Recipe(epochs=2, ema=0.5, beta=0.0, **recipe))
    fit(module, out, Machine(limit_steps=4), epochs=epochs)
    return module


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_are_averaged_and_parts_of_a_step_are_not(parts: int, tmp_path: Path) -> None:
    module = train(tmp_path, 1, accumulate=parts)
    after_steps = module.noted[parts - 1 :: parts]
    assert len(after_steps) == 4 // parts
    expected = after_steps[0]
    for step, weights in enumerate(after_steps[1:], start=1):
        share = min(0.5, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * weights
    torch.testing.assert_close(module.evaluated.fc.weight, expected)
    assert not torch.allclose(module.evaluated.fc.weight, module.network.fc.weight, atol=1e-5)


def test_the_average_is_what_is_judged(tmp_path: Path) -> None:
    module = train(tmp_path, 2)
    task, hits, count = module.task, 0, 0
    network = module.evaluated.eval()
    for index, batch in enumerate(task.val_loader(128)):
        if index < 4:
            images, labels = task.prepare(batch, train=False)
            hits, count = hits + int((network(images).argmax(1) == labels).sum()), count + len(labels)
    assert module.figures["accuracy"] == pytest.approx(hits / count)


def test_a_resumed_average_is_that_of_an_unbroken_run(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 2)
    train(tmp_path / "cut", 1)
    resumed = train(tmp_path / "cut", 2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    kept = whole.weights_in(read(tmp_path / "whole" / "last.ckpt"))
    assert all(torch.equal(kept[name], value) for name, value in whole.evaluated.state_dict().items())
