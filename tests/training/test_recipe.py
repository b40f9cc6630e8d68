"""Recipes: what they allow, the rate at each step, the optimisers; and that what is new is off by default."""

import math
from typing import Any

import pytest
import torch

from nni_blockswap.errors import ConfigError
from nni_blockswap.training.recipe import DetectionRecipe, Recipe


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lr": math.nan}, "--lr must be finite, which nan is not"),
        ({"lr": math.inf}, "--lr must be finite, which inf is not"),
        ({"lr": 0.0}, "--lr must be above 0, not 0.0"),
        ({"lr": "0.1"}, "--lr must be a number, not '0.1'"),
        ({"epochs": 10**400}, "--epochs must be finite, which 1000"),
        ({"epochs": -12}, "--epochs must be above 0, not -12"),
        ({"epochs": 1.5}, "--epochs must be a whole number, not 1.5"),
        ({"epochs": True}, "--epochs must be a whole number, not True"),
        ({"batch_size": 0}, "--batch-size must be above 0, not 0"),
        ({"momentum": 1.0}, "--momentum must be below 1, not 1.0"),
        ({"momentum": -0.1}, "--momentum must not be negative, as -0.1 is"),
        ({"weight_decay": -math.inf}, "--weight-decay must be finite, which -inf is not"),
        ({"clip": 0.0}, "--clip must be above 0, not 0.0"),
        ({"clip": math.nan}, "--clip must be finite"),
        ({"accumulate": 0}, "--accumulate must be above 0"),
        ({"accumulate": 3}, "--batch-size 128 cannot be computed in 3 equal parts"),
        ({"ema": 1.0}, "--ema must be below 1"),
        ({"patience": 0}, "--patience must be above 0"),
        ({"optimizer": "lion"}, "--optimizer is one of sgd, adamw, not 'lion'"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov is for --optimizer sgd with a --momentum above 0"),
        ({"nesterov": True, "optimizer": "adamw"}, "--nesterov is for --optimizer sgd"),
        ({"seed": -1}, "--seed must be a whole number from 0 to 4294967295, not -1"),
        ({"seed": 2**63}, "--seed must be a whole number from 0"),
    ],
)
@pytest.mark.parametrize("recipe", [Recipe, DetectionRecipe])
def test_what_no_training_can_use_is_refused_by_the_name_of_its_option(
    wrong: dict[str, Any], sentence: str, recipe: Any
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        recipe(**{"batch_size": 128, **wrong})


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"beta": math.nan}, "--beta must be finite"),
        ({"kd": -1.0}, "--kd must not be negative"),
        ({"features": math.inf}, "--features must be finite"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"label_smoothing": 1.0}, "--label-smoothing must be below 1"),
        ({"warmup": -1.0}, "--warmup must not be negative"),
        ({"milestones": (0,)}, "--milestones must be above 0, not 0"),
        ({"schedule": "linear"}, "--schedule is one of cosine, cosine_steps, step, constant, not 'linear'"),
        ({"attention": "l1"}, "--attention is one of mse, norm, not 'l1'"),
    ],
)
def test_a_students_options_are_refused_likewise(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Recipe(**wrong)


def test_defaults_are_the_papers_and_nothing_else() -> None:
    assert Recipe() == Recipe(200, 128, 0.1, 0.9, 5e-4, "cosine", 1000.0, "mse")
    off = {"kd": 0.0, "features": 0.0, "label_smoothing": 0.0, "warmup": 0.0, "milestones": []}
    off |= {"optimizer": "sgd", "nesterov": False, "clip": None, "accumulate": 1, "ema": None, "patience": None}
    settings = Recipe().settings()
    assert {name: settings[name] for name in off} == off


def test_a_warm_up_rises_step_by_step_to_what_the_schedule_has() -> None:
    recipe = Recipe(epochs=10, lr=0.8, schedule="constant", warmup=2)
    rates = [recipe.learning_rate(step // 4, step, steps=4) for step in range(12)]  # four steps an epoch
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, *[0.8] * 5])
    cosine = Recipe(epochs=4, lr=1.0, warmup=1)
    assert cosine.learning_rate(0, 0, steps=2) == pytest.approx(0.5)
    assert cosine.learning_rate(2, 4, steps=2) == pytest.approx(0.5)  # half-way down


def test_a_cosine_may_fall_from_step_to_step() -> None:
    smooth = Recipe(epochs=2, lr=1.0, schedule="cosine_steps")
    assert smooth.learning_rate(0, 3, steps=3 * 4) == pytest.approx((1 + math.cos(math.pi / 8)) / 2)
    assert smooth.learning_rate(1, 12 + 6, steps=12) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert smooth.learning_rate(1, 5000, steps=1) == pytest.approx(0.5)  # endless data: nobody knows an epoch's steps


def test_milestones_divide_the_rate() -> None:
    recipe = Recipe(epochs=9, lr=1.0, schedule="step", milestones=(2, 5))
    assert [recipe.learning_rate(epoch) for epoch in range(9)] == pytest.approx([1.0] * 2 + [0.1] * 3 + [0.01] * 4)
    assert Recipe(lr=0.3, schedule="constant").learning_rate(150) == 0.3


def test_milestones_are_any_collection_of_epochs() -> None:
    assert Recipe(milestones=[2, 5]).milestones == DetectionRecipe(milestones=range(2, 6, 3)).milestones == (2, 5)
    for recipe in (Recipe, DetectionRecipe):
        with pytest.raises(ConfigError, match=r"--milestones are epochs, as in \(30, 60\), not 3"):
            recipe(milestones=3)


def test_a_network_without_a_weight_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="no weight to train"):
        Recipe().optimiser(torch.nn.Linear(1, 1).requires_grad_(False).parameters())


def test_optimisers_by_name() -> None:
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)]
    adamw = Recipe(lr=0.3, momentum=0.8, weight_decay=0.02, optimizer="adamw").optimiser(weights)
    assert isinstance(adamw, torch.optim.AdamW)
    (group,) = adamw.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.3, (0.8, 0.999), 0.02)
    assert [weight is weights[0] for weight in group["params"]] == [True]
    sgd = Recipe(nesterov=True).optimiser(weights)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["nesterov"] is True


def test_a_teacher_imitates_nobody_and_is_trained_alike_otherwise() -> None:
    student = Recipe(epochs=9, lr=0.2, beta=3.0, attention="norm", kd=1.0, temperature=2.0, features=1.0, ema=0.9)
    assert student.imitates
    teacher = student.of_teacher(4)
    assert teacher == Recipe(epochs=4, lr=0.2, beta=0.0, ema=0.9)
    assert not teacher.imitates
    assert student.of_teacher(None).epochs == 9
