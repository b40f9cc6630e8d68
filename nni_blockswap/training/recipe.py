"""How a network is trained: optimiser, schedule, and for a student what it imitates."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, get_args

import torch
from torch import nn

from nni_blockswap.errors import ConfigError
from nni_blockswap.ranges import COUNT, POSITIVE, SHARE, WEIGHT, Range, check_choice
from nni_blockswap.seeds import check_seed
from nni_blockswap.training.attention import Mode

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "cosine_steps", "step", "constant")
TERMS = ("beta", "kd", "features")
"""Weights of what a student imitates."""


@dataclass(frozen=True)
class Optimisation:
    """What every recipe has: an optimiser that steps through epochs of batches.

    Attributes:
        batch_size: images a step, over all processes.
        lr: the largest learning rate.
        momentum: of SGD; AdamW's first beta.
        weight_decay: L2 penalty of SGD; AdamW's decoupled one.
        optimizer: one of ``OPTIMIZERS``.
        nesterov: SGD's momentum looks ahead.
        clip: largest 2-norm of a step's gradient, or None.
        accumulate: a batch is computed in so many parts, whose gradients are summed up: less memory, the same step, but
            that BN sees the parts.
        ema: decay of an exponential moving average of the weights, which is evaluated and published instead of them; or
            None. See ``averaging``.
        patience: stop when the metric has not become better than its best for so many epochs; None never does.
        seed: of weights, order and augmentation.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    optimizer: str = field(default="sgd", kw_only=True)
    nesterov: bool = field(default=False, kw_only=True)
    clip: float | None = field(default=None, kw_only=True)
    accumulate: int = field(default=1, kw_only=True)
    ema: float | None = field(default=None, kw_only=True)
    patience: int | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    ranges: ClassVar[dict[str, Range]] = {
        **dict.fromkeys(("epochs", "batch_size", "accumulate", "patience"), COUNT),
        **dict.fromkeys(("lr", "clip"), POSITIVE),
        **dict.fromkeys(("momentum", "ema"), SHARE),
        "weight_decay": WEIGHT,
    }
    """Of its numbers; one that may be None is not looked at where it is."""

    def __post_init__(self) -> None:
        for name, allowed in self.ranges.items():
            value = getattr(self, name)
            if value is not None or name not in ("clip", "ema", "patience"):
                allowed.check(f"--{name.replace('_', '-')}", value)
        check_choice("--optimizer", self.optimizer, OPTIMIZERS)
        check_seed(self.seed, "--seed")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ConfigError("--nesterov is for --optimizer sgd with a --momentum above 0.")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"--batch-size {self.batch_size} cannot be computed in {self.accumulate} equal parts.")

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Learning rate at a step.

        Args:
            epoch: from 0.
            step: from 0, over all epochs.
            steps: in an epoch.
        """
        raise NotImplementedError

    def optimiser(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of those of ``weights`` that are trained; whoever trains sets the rate of each step."""
        trained = [weight for weight in weights if weight.requires_grad]
        if not trained:
            raise ConfigError("the network has no weight to train: set requires_grad where one is to be learned.")
        if self.optimizer == "adamw":
            betas = (self.momentum, 0.999)
            return torch.optim.AdamW(trained, self.lr, betas=betas, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            trained, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )

    def settings(self) -> dict[str, Any]:
        """All of it, as JSON knows it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Recipe(Optimisation):
    """How a classifier is trained, for a student with what it imitates. Defaults: the paper's section 5.

        loss = cross-entropy + beta * attention + kd * logits + features * activations

    Attributes:
        schedule: "cosine" falls from ``lr`` to 0 over all epochs, from epoch to epoch; "cosine_steps" does so from step
            to step, as runs of a few epochs need it; "step" divides by 10 at each of the ``milestones``; "constant"
            stays.
        milestones: epochs after which "step" divides; every 30 where there are none.
        warmup: epochs over which the rate rises linearly, step by step, to what the schedule has.
        label_smoothing: share of the label that is spread evenly over all classes.
        beta: weight of attention transfer, see ``attention``.
        attention: form of its distance.
        kd: weight of logit distillation, see ``imitation.logit_distance``.
        temperature: of logit distillation.
        features: weight of feature matching, see ``imitation.feature_distances``.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    beta: float = 1000.0
    attention: Mode = "mse"
    milestones: tuple[int, ...] = field(default=(), kw_only=True)
    warmup: float = field(default=0.0, kw_only=True)
    label_smoothing: float = field(default=0.0, kw_only=True)
    kd: float = field(default=0.0, kw_only=True)
    temperature: float = field(default=4.0, kw_only=True)
    features: float = field(default=0.0, kw_only=True)

    ranges: ClassVar[dict[str, Range]] = {
        **Optimisation.ranges,
        **dict.fromkeys(("warmup", "beta", "kd", "features"), WEIGHT),
        "label_smoothing": SHARE,
        "temperature": POSITIVE,
    }

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", as_milestones(self.milestones))
        super().__post_init__()
        check_choice("--schedule", self.schedule, SCHEDULES)
        check_choice("--attention", self.attention, get_args(Mode))

    @property
    def imitates(self) -> bool:
        """Whether it needs a teacher."""
        return any(getattr(self, name) for name in TERMS)

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Learning rate at a step; but for warm-up and "cosine_steps" the same throughout the epoch."""
        warm = min(1.0, (step + 1) / (self.warmup * steps)) if self.warmup else 1.0
        return warm * self._scheduled(epoch, step / steps)

    def _scheduled(self, epoch: int, passed: float) -> float:
        """The rate without warm-up; ``passed`` is the epoch with its parts."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return stepped(self.lr, epoch, self.milestones or range(30, self.epochs, 30))
        is_known = epoch <= passed < epoch + 1  # of endless data nobody knows an epoch's steps
        share = (passed if self.schedule == "cosine_steps" and is_known else epoch) / self.epochs
        return 0.5 * self.lr * (1 + math.cos(math.pi * share))

    def check_sized(self, *, sized: bool) -> None:
        """Raise ConfigError where it counts the steps of an epoch, and batches do not say how many there are."""
        if self.warmup and not sized:
            raise ConfigError("warmup counts epochs, and train does not say how many batches it has; leave it out.")

    def of_teacher(self, epochs: int | None) -> "Recipe":
        """The same recipe for the teacher: ``epochs`` where given, nothing to imitate."""
        nobody = replace(self, beta=0.0, kd=0.0, features=0.0, attention="mse", temperature=Recipe().temperature)
        return replace(nobody, epochs=epochs or self.epochs)


OF_A_LIBRARY: Mapping[str, Any] = {"beta": 0.0, "kd": 1.0, "lr": 0.03, "schedule": "cosine_steps"}
"""What suits a student that starts from a library: its defaults (benchmarks/results/library.md)."""


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

    ranges: ClassVar[dict[str, Range]] = {**Optimisation.ranges, "warmup": Range(from_zero=True, whole=True)}

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", as_milestones(self.milestones))
        super().__post_init__()

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Learning rate at a step."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return warm * stepped(self.lr, epoch, self.milestones)


def stepped(lr: float, epoch: int, milestones: Iterable[int]) -> float:
    """``lr``, divided by 10 for each of ``milestones`` that ``epoch`` has reached."""
    return float(lr * 0.1 ** sum(epoch >= milestone for milestone in milestones))


def as_milestones(given: object) -> tuple[int, ...]:
    """Milestones in any collection, as JSON knows lists. Raises ConfigError unless each is an epoch."""
    if not isinstance(given, Iterable):
        raise ConfigError(f"--milestones are epochs, as in (30, 60), not {given!r}.")
    milestones = tuple(given)
    for milestone in milestones:
        COUNT.check("--milestones", milestone)
    return milestones
