"""The training step of a detector: SGD down the sum of the losses, at the recipe's rate, on mirrored images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.tasks.coco import Coco
from nni_blockswap.training.detection import DetectionTraining
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.recipe import DetectionRecipe
from nni_blockswap.training.running import fit
from tests.conftest import generated_coco


class OneWeight(nn.Module):
    """A detector that finds nothing and whose losses are w and 2w: the gradient of their sum is 3 everywhere.

    It keeps the images that it sees, by their number in training, and its weight at each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.fixed = nn.Parameter(torch.ones(()), requires_grad=False)
        self.weights: list[float] = []
        self.trained_on: list[tuple[int, Tensor]] = []
        self.evaluated_on: list[Tensor] = []

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is None:
            self.evaluated_on += images
            nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
            return [{**nothing, "masks": torch.zeros(0, 1, *image.shape[1:])} for image in images]
        self.weights.append(self.weight.item())
        self.trained_on += [(int(target["image_id"]), image) for target, image in zip(targets, images, strict=True)]
        return {"one": self.weight, "other": 2 * self.weight}


@pytest.fixture
def task(tmp_path: Path) -> Coco:
    (tmp_path / "coco").mkdir()
    return Coco(str(generated_coco(tmp_path / "coco")))


def trained(task: Coco, recipe: DetectionRecipe, out: Path, steps: int) -> OneWeight:
    network = OneWeight()
    fit(DetectionTraining(network, task, recipe), out, Machine(precision="32-true", limit_steps=steps))
    return network


def test_each_step_goes_down_the_sum_of_the_losses_at_the_rate_of_the_step(task: Coco, tmp_path: Path) -> None:
    """Two steps an epoch: a warm-up over two epochs, one at the full rate, then a milestone after each."""
    recipe = DetectionRecipe(5, 2, lr=0.4, momentum=0.0, weight_decay=0.0, warmup=4, milestones=(3, 4))
    network = trained(task, recipe, tmp_path, steps=2)
    weights = torch.tensor([*network.weights, network.weight.item()], dtype=torch.float64)
    rates = [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004]
    assert (-weights.diff() / 3).tolist() == pytest.approx(rates)


def test_training_images_are_mirrored_at_random_and_others_are_not(task: Coco, tmp_path: Path) -> None:
    network = trained(task, DetectionRecipe(epochs=1, batch_size=2), tmp_path, steps=6)
    images, targets = task.minibatch(12, seed=0, augment=False)
    plain = {int(target["image_id"]): image for target, image in zip(targets, images, strict=True)}
    assert sorted(number for number, _ in network.trained_on) == sorted(plain)
    mirrored = [not torch.equal(image, plain[number]) for number, image in network.trained_on]
    for flipped, (number, image) in zip(mirrored, network.trained_on, strict=True):
        assert not flipped or torch.equal(image, plain[number].flip(2))
    assert 2 <= sum(mirrored) <= 10
    held_out = [image.float() / 255 for images, _ in task.val_loader(4) for image in images]
    assert all(torch.equal(*pair) for pair in zip(network.evaluated_on, held_out, strict=True))


def test_the_average_of_the_weights_is_what_is_judged(task: Coco, tmp_path: Path) -> None:
    network = OneWeight()
    module = DetectionTraining(network, task, DetectionRecipe(epochs=1, batch_size=2, ema=0.5))
    fit(module, tmp_path, Machine(precision="32-true", limit_steps=1))
    judged: Any = module.evaluated
    assert (len(judged.evaluated_on), len(network.evaluated_on)) == (2, 0)


def test_sgd_has_the_momentum_and_weight_decay_of_the_recipe(task: Coco) -> None:
    network = OneWeight()
    recipe = DetectionRecipe(lr=0.3, momentum=0.7, weight_decay=0.02)
    optimizer = DetectionTraining(network, task, recipe).configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    expected = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.02, "nesterov": False, "dampening": 0}
    assert {name: group[name] for name in expected} == expected
    (weight,) = group["params"]
    assert weight is network.weight  # and not what is fixed
