"""The command line that the trials share: a recipe, a data set, a machine. Defaults are the paper's section 5."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from nni_blockswap.errors import ConfigError
from nni_blockswap.training.attention import Mode

SCHEDULES = ("cosine", "step")
PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")
"""Lightning's, as far as weights stay in float32: a step of SGD is often too small to change a bfloat16."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD under a learning-rate schedule, for a student with attention transfer.

    Attributes:
        batch_size: images a step, over all processes.
        schedule: "cosine" falls from ``lr`` to 0 over all epochs; "step" divides by 10 every 30 epochs.
        beta: weight of the sum of the attention points' distances; 0 trains without a teacher.
        attention: form of the distance, see ``nni_blockswap.training.attention``.
        clip: largest 2-norm of a step's gradient, or None.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    beta: float = 1000.0
    attention: Mode = "mse"
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}.")
        for name in ("beta", "momentum", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must not be negative, as {getattr(self, name)} is.")

    def learning_rate(self, epoch: int) -> float:
        """Learning rate throughout ``epoch``, counted from 0."""
        if self.schedule == "step":
            return float(self.lr * 0.1 ** (epoch // 30))
        return 0.5 * self.lr * (1 + math.cos(math.pi * epoch / self.epochs))

    def of_teacher(self, epochs: int | None) -> "Recipe":
        """The same recipe for the teacher: ``epochs`` where given, nothing to imitate."""
        return replace(self, epochs=epochs or self.epochs, beta=0.0, attention="mse")


@dataclass(frozen=True)
class Machine:
    """Where and how fast: devices of this machine, arithmetic, processes that read data, at most how many steps."""

    devices: str = "1"
    precision: str = "auto"
    workers: int = 0
    limit_steps: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision is one of {', '.join(PRECISIONS)}, not '{self.precision}'.")
        if self.workers < 0:
            raise ConfigError(f"--workers must not be negative, as {self.workers} is.")
        if self.limit_steps is not None and self.limit_steps < 1:
            raise ConfigError(f"--limit-steps must be above 0, not {self.limit_steps}; leave it out for no limit.")


def add_data(parser: argparse.ArgumentParser, default: str = "cifar10") -> None:
    """Options that name a data set."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", default=default, help="data set: digits, cifar10, cifar100, image-folder, imagenet, coco"
    )
    data.add_argument("--data-root", metavar="DIR", help="folder that holds the data set")
    data.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="option of the data set")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Options of ``Recipe``."""
    default = Recipe()
    recipe = parser.add_argument_group("recipe (defaults: section 5 of the paper)")
    recipe.add_argument("--epochs", type=int, default=default.epochs)
    recipe.add_argument("--batch-size", type=int, default=default.batch_size, help="images a step, over all processes")
    recipe.add_argument("--lr", type=float, default=default.lr, help="initial learning rate")
    recipe.add_argument("--momentum", type=float, default=default.momentum)
    recipe.add_argument("--weight-decay", type=float, default=default.weight_decay)
    recipe.add_argument("--schedule", choices=SCHEDULES, default=default.schedule, help="step: /10 every 30 epochs")
    recipe.add_argument("--beta", type=float, default=default.beta, help="weight of attention transfer; 0: no teacher")
    recipe.add_argument("--attention", choices=get_args(Mode), default=default.attention, help="form of the distance")
    recipe.add_argument("--clip", type=float, default=None, metavar="NORM", help="clip gradients to this norm")
    recipe.add_argument("--seed", type=int, default=default.seed)


def add_machine(parser: argparse.ArgumentParser, auto: str = "bf16-mixed on a GPU that has it") -> None:
    """Options of ``Machine``; ``auto`` is what the help says of the precision of that name."""
    machine = parser.add_argument_group("machine")
    machine.add_argument("--devices", default="1", help="how many GPUs of this machine, or 'auto' for all of them")
    machine.add_argument("--precision", default="auto", help=f"one of {', '.join(PRECISIONS)}; auto: {auto}")
    machine.add_argument("--workers", type=int, default=0, help="processes that read images (image folders)")
    machine.add_argument("--limit-steps", type=int, metavar="N", help="at most N steps an epoch, to try a command out")


def add_space(parser: argparse.ArgumentParser) -> None:
    """Options that name a search space."""
    space = parser.add_argument_group("search space")
    space.add_argument("--space", metavar="MODULE:CLASS", help="as in search_spaces.wide_resnet:WideResNetSpace")
    space.add_argument("--space-args", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the space")


def add_teacher(parser: argparse.ArgumentParser) -> None:
    """Options for where a teacher is kept."""
    parser.add_argument("--teacher-dir", default="teachers", metavar="DIR", help="where trained teachers are kept")


def recipe_from(options: argparse.Namespace) -> Recipe:
    """The recipe that the command line gives."""
    return Recipe(**{name: getattr(options, name) for name in asdict(Recipe())})


def machine_from(options: argparse.Namespace) -> Machine:
    """The machine that the command line gives."""
    return Machine(options.devices, options.precision, options.workers, options.limit_steps)


def data_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the data, as JSON knows it: which set, where, and how much of it an epoch takes."""
    root = options.data_root
    return {
        "data": options.data,
        "data_root": None if root is None else str(Path(root).resolve()),
        "data_options": pairs(options.data_option, "--data-option"),
        "limit_steps": options.limit_steps,
    }


def pairs(texts: Sequence[str], option: str) -> dict[str, Any]:
    """["depth=16", "name=x"] -> {"depth": 16, "name": "x"}: values are JSON where they can be read so.

    Raises:
        ConfigError: one has no "=".
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{option} takes KEY=VALUE, not '{text}'.")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
