"""The training step: equation (1), a teacher that nothing changes, a diverged run that stops and spoils nothing."""

import copy
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError, TrainingError
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.classification import Classification
from nni_blockswap.training.checkpoints import read
from nni_blockswap.training.classification import ImageTraining, Teacher
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.module import seed_epoch
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.reporting import EpochReport
from nni_blockswap.training.running import Finished, fit, make_trainer
from nni_blockswap.training.teachers import check_fit
from tests.conftest import SMALL, WRN

STUDENT = Architecture.from_choices(WRN, ["B(2)", "G(4)", "BG(2,4)"], SMALL)
POINTS = ("stage1", "stage2", "stage3")


@pytest.fixture
def task():
    return make_task("digits", image_size=8)


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(1)
    return Teacher(STUDENT.teacher().build(), POINTS, 0.5)


def train(module: ImageTraining, out: Path, epochs: int, callbacks=()) -> Finished:
    return fit(module, out, Machine(limit_steps=3), callbacks, epochs=epochs)


def stages(network, images: torch.Tensor) -> list[torch.Tensor]:
    first = network.stage1(network.conv(images))
    second = network.stage2(first)
    return [first, second, network.stage3(second)]


def test_loss_is_equation_one(task, teacher: Teacher) -> None:
    student = STUDENT.build()
    module = ImageTraining(student, task, Recipe(beta=30.0), teacher)
    images, labels = task.minibatch(16, seed=0)
    expected = F.cross_entropy(copy.deepcopy(student)(images), labels).item()
    with torch.no_grad():
        pairs = zip(stages(copy.deepcopy(student), images), stages(teacher.network, images), strict=True)
        for of_student, of_teacher in pairs:
            maps = [a.double().square().mean(1).flatten(1) for a in (of_student, of_teacher)]
            unit = [m / m.norm(dim=1, keepdim=True) for m in maps]
            expected += 30.0 * (unit[0] - unit[1]).square().mean().item()
    loss = module.training_step((images, labels), 0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_sgd_has_the_momentum_and_weight_decay_of_the_recipe(task) -> None:
    network = STUDENT.build()
    optimizer = ImageTraining(network, task, Recipe(lr=0.3, momentum=0.7, weight_decay=0.02)).configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    expected = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.02, "nesterov": False, "dampening": 0}
    assert {name: group[name] for name in expected} == expected
    assert {id(weight) for weight in group["params"]} == {id(weight) for weight in network.parameters()}


@pytest.mark.parametrize(("classes", "top5"), [(12, 5 / 12), (10, 5 / 10), (9, None), (4, None)])
def test_accuracy_is_of_the_first_and_top5_of_the_first_five(classes: int, top5: float | None, tmp_path: Path) -> None:
    """Each class once; for every image class n is ranked n-th. The batches are of different sizes."""
    logits = torch.arange(classes, 0.0, -1).view(-1, 1, 1)
    loader = DataLoader([(logits, label) for label in range(classes)], batch_size=5)
    task = Classification()
    task.num_classes, task.prepare = classes, lambda batch, *, train, generator: batch
    trainer = make_trainer(tmp_path, 1, Machine(), board=False)
    (metrics,) = trainer.validate(ImageTraining(nn.Flatten(), task, Recipe()), loader, verbose=False)
    assert metrics["val/accuracy"] == pytest.approx(1 / classes)
    assert metrics.get("val/top5") == (top5 and pytest.approx(top5))


@pytest.mark.parametrize("processes", [1, 2])
def test_seed_and_epoch_decide_over_order_and_draws(processes: int) -> None:
    def start(seed: int, epoch: int, rank: int) -> tuple[list[int], list[float], list[float]]:
        shared = DistributedSampler(range(64), processes, rank) if processes > 1 else None
        loader = DataLoader(range(64), shuffle=shared is None, sampler=shared)
        if shared is not None:
            shared.set_epoch(epoch)  # Lightning does
        trainer = SimpleNamespace(current_epoch=epoch, world_size=processes, global_rank=rank, train_dataloader=loader)
        draws = seed_epoch(trainer, seed, torch.device("cpu"))
        return list(loader.sampler), torch.rand(8, generator=draws).tolist(), torch.rand(8).tolist()

    starts = [start(seed, epoch, rank=0) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert starts[0] == start(0, 0, rank=0)
    for one, other in combinations(starts, 2):
        assert all(of_one != of_other for of_one, of_other in zip(one, other, strict=True))
    ranks = [start(1, 0, rank) for rank in range(processes)]
    assert sorted(position for order, _, _ in ranks for position in order) == list(range(64))  # each example once
    assert len({tuple(draws) for _, draws, _ in ranks}) == processes


def test_distillation_leaves_its_teacher_as_it_was_and_out_of_the_checkpoint(task, teacher, tmp_path: Path) -> None:
    before = copy.deepcopy(teacher.network.state_dict())
    module = ImageTraining(STUDENT.build(), task, Recipe(batch_size=128), teacher)
    weights = module.network.fc.weight.detach().clone()
    train(module, tmp_path, epochs=2)
    after = teacher.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # BN statistics among them
    assert not any(part.training for part in teacher.network.modules())
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    assert not torch.equal(weights, module.network.fc.weight)
    assert read(tmp_path / "last.ckpt")["state_dict"].keys() == {
        f"network.{name}" for name in module.network.state_dict()
    }


def test_a_diverged_run_says_so_and_keeps_the_checkpoints_of_earlier_epochs(task, tmp_path: Path) -> None:
    class Diverging(ImageTraining):
        def training_step(self, batch, batch_idx: int) -> torch.Tensor:
            images, labels = batch
            return super().training_step((images * (float("nan") if self.current_epoch else 1), labels), batch_idx)

    with pytest.raises(TrainingError, match=r"no longer finite in epoch 2; lower --lr \(0.1\)"):
        train(Diverging(STUDENT.build(), task, Recipe(epochs=3)), tmp_path, epochs=3)
    for name in ("last.ckpt", "best.ckpt"):
        kept = read(tmp_path / name)
        assert kept["epoch"] == 0
        assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


def test_a_hopeless_learning_rate_ends_in_that_sentence(task, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no longer finite"):
        train(ImageTraining(STUDENT.build(), task, Recipe(lr=1e20, epochs=3)), tmp_path, epochs=3)


def test_every_epoch_reports_numbers_with_its_learning_rate(task, teacher, tmp_path: Path) -> None:
    seen = []
    report = EpochReport(lambda epoch, metrics: seen.append((epoch, metrics)), "val/accuracy")
    run = train(ImageTraining(STUDENT.build(), task, Recipe(epochs=2), teacher), tmp_path, 2, [report])
    assert [epoch for epoch, _ in seen] == [0, 1]
    assert [metrics["learning_rate"] for _, metrics in seen] == pytest.approx([0.1, 0.05])
    last = seen[-1][1]
    assert last["default"] == last["val_accuracy"]
    assert last["val_top5"] >= last["val_accuracy"]
    distances = [last[f"train_attention_{point}"] for point in POINTS]
    assert last["train_loss"] == pytest.approx(last["train_cross_entropy"] + 1000 * sum(distances), rel=1e-4)
    assert run.best == max(metrics["default"] for _, metrics in seen)
    assert run.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)


class Watched(ImageTraining):
    """Keeps the training batches of each epoch, as the network sees them, and the held-out ones."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.seen: dict[int, list[torch.Tensor]] = {}
        self.held_out: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        self.seen.setdefault(self.current_epoch, []).append(batch[0].clone())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx: int) -> None:
        self.held_out.append(batch[0].clone())
        super().validation_step(batch, batch_idx)


def test_training_images_are_augmented_and_held_out_ones_are_not(task, tmp_path: Path) -> None:
    module = Watched(STUDENT.build(), task, Recipe(epochs=1))
    train(module, tmp_path, epochs=1)

    def rows(images: torch.Tensor) -> list[tuple[float, ...]]:
        return [tuple(image.flatten().tolist()) for image in images]

    def plain(loader) -> set[tuple[float, ...]]:
        return {row for batch in loader for row in rows(task.prepare(batch, train=False)[0])}

    training, held_out = rows(torch.cat(module.seen[0])), rows(torch.cat(module.held_out))
    assert (len(training), len(held_out)) == (3 * 128, 360)
    kept = plain(task.train_loader(1))
    assert 0 < sum(row in kept for row in training) < len(training) / 2  # a shift of 0 in both directions: one in nine
    assert set(held_out) == plain(task.val_loader(360))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_batches_of_an_unbroken_one(tmp_path: Path, workers: int) -> None:
    draw = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        (tmp_path / part / "class0").mkdir(parents=True)
        for index in range(count):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "class0" / f"{index}.png")
    task = make_task("image-folder", str(tmp_path), image_size=8)
    original = Architecture.from_choices(WRN, ["S"] * 3, {**SMALL, "in_channels": 3})

    def batches(out: str, epochs: int) -> dict[int, torch.Tensor]:
        module = Watched(original.build(), task, Recipe(lr=1e-3, epochs=2, batch_size=4))
        fit(module, tmp_path / out, Machine(workers=workers), epochs=epochs)
        return {epoch: torch.cat(seen) for epoch, seen in module.seen.items()}

    whole = batches("whole", 2)
    torch.rand(3)  # another process would have other draws behind it
    first, second = batches("cut", 1), batches("cut", 2)
    assert (list(first), list(second)) == ([0], [1])
    assert torch.equal(first[0], whole[0])
    assert torch.equal(second[1], whole[1])
    assert len({tuple(image.flatten().tolist()) for image in torch.cat([whole[0], whole[1]])}) == 16  # no draw twice


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(), {0: 0.1, 50: 0.05 * (1 + 2**-0.5), 100: 0.05, 199: 0.1 * 0.00006168}),
        (Recipe(schedule="step", epochs=100), {0: 0.1, 29: 0.1, 30: 0.01, 60: 0.001, 99: 0.0001}),
    ],
)
def test_learning_rate_by_epoch(recipe: Recipe, expected: dict[int, float]) -> None:
    assert [recipe.learning_rate(epoch) for epoch in expected] == pytest.approx(list(expected.values()), rel=1e-3)


def test_networks_that_do_not_fit_the_data_are_refused(task) -> None:
    other_size = Architecture.from_choices(WRN, ["S"] * 3, {**SMALL, "image_size": 16})
    with pytest.raises(ConfigError, match="for images of 1x16x16 and digits has 1x8x8"):
        check_fit(other_size, task)
    few_classes = Architecture.from_choices(WRN, ["S"] * 3, {**SMALL, "num_classes": 7})
    with pytest.raises(ConfigError, match="digits has 10 classes and the network 7"):
        check_fit(few_classes, task)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": -1.0}, {"beta": -1.0}])
def test_impossible_recipes_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="must"):
        Recipe(**wrong)
