"""How a network is trained: optimiser, schedule, and for a student what it imitates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from nni_blockswap.errors import ConfigError
from nni_blockswap.seeds import check_seed
from nni_blockswap.training.attention import Mode

SCHEDULES = ("cosine", "step")


@dataclass(frozen=True)
class Optimisation:
    """What every recipe has: SGD over epochs of batches.

    Attributes:
        batch_size: images a step, over all processes.
        lr: the largest learning rate.
        clip: largest 2-norm of a step's gradient, or None.
        seed: of weights, order and augmentation.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    clip: float | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{option(name)} must be above 0, not {getattr(self, name)}.")
        for name in ("momentum", "weight_decay"):
            check_not_negative(name, getattr(self, name))
        check_seed(self.seed, "--seed")

    def learning_rate(self, epoch: int, step: int = 0) -> float:
        """Learning rate in ``epoch`` at ``step``, both counted from 0, steps over all epochs."""
        raise NotImplementedError

    def optimiser(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of those of ``weights`` that are trained; whoever trains sets the rate of each step."""
        trained = [weight for weight in weights if weight.requires_grad]
        return torch.optim.SGD(trained, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Recipe(Optimisation):
    """How a classifier is trained, for a student with attention transfer. Defaults: the paper's section 5.

    Attributes:
        schedule: "cosine" falls from ``lr`` to 0 over all epochs; "step" divides by 10 every 30 epochs.
        beta: weight of the sum of the attention points' distances; 0 trains without a teacher.
        attention: form of the distance, see ``nni_blockswap.training.attention``.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    beta: float = 1000.0
    attention: Mode = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("beta", self.beta)

    def learning_rate(self, epoch: int, step: int = 0) -> float:
        """Learning rate throughout ``epoch``, counted from 0."""
        if self.schedule == "step":
            return float(self.lr * 0.1 ** (epoch // 30))
        return 0.5 * self.lr * (1 + math.cos(math.pi * epoch / self.epochs))

    def of_teacher(self, epochs: int | None) -> "Recipe":
        """The same recipe for the teacher: ``epochs`` where given, nothing to imitate."""
        return replace(self, epochs=epochs or self.epochs, beta=0.0, attention="mse")


@dataclass(frozen=True)
class DetectionRecipe(Optimisation):
    """torchvision's reference settings for Mask R-CNN (the paper's section 7).

    Attributes:
        lr: after the warm-up, which rises linearly over ``warmup`` steps, and before the first milestone.
        milestones: epochs after which the learning rate is divided by 10.
    """

    epochs: int = 26
    batch_size: int = 16
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (16, 22)
    warmup: int = 1000

    def learning_rate(self, epoch: int, step: int = 0) -> float:
        """Learning rate in ``epoch`` at ``step``, both counted from 0, steps over all epochs."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return float(self.lr * warm * 0.1 ** sum(epoch >= milestone for milestone in self.milestones))


def option(name: str) -> str:
    """A field as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def check_not_negative(name: str, value: float) -> None:
    """Raise ConfigError if it is."""
    if value < 0:
        raise ConfigError(f"{option(name)} must not be negative, as {value} is.")
