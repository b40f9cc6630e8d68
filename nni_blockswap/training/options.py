"""The command line that the trials share: a recipe, a data set, a machine."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from nni_blockswap.data_options import CLASSIFICATION, add_data_set
from nni_blockswap.key_values import add_key_values, key_values
from nni_blockswap.training.attention import Mode
from nni_blockswap.training.machine import PRECISIONS, Machine
from nni_blockswap.training.recipe import OF_A_LIBRARY, OPTIMIZERS, SCHEDULES, DetectionRecipe, Optimisation, Recipe
from nni_blockswap.training.starting import FRESH, STARTS, is_of_library
from nni_blockswap.trust import add_allow


def add_student(parser: argparse.ArgumentParser) -> None:
    """Options for what is trained, and where its results go."""
    parser.add_argument("--architecture", metavar="FILE", help="a saved Architecture; not needed under NNI")
    add_allow(parser)
    parser.add_argument("--out", metavar="DIR", help="where results go; under NNI the trial's output folder")


def add_space(parser: argparse.ArgumentParser) -> None:
    """Options that name a search space."""
    space = parser.add_argument_group("search space")
    space.add_argument("--space", metavar="MODULE:CLASS", help="as in search_spaces.wide_resnet:WideResNetSpace")
    add_key_values(space, "--space-arg", "--space-args", about="arguments of the space")  # the latter in users' configs


class StudentParser(argparse.ArgumentParser):
    """Of a student's training: what is not given suits what the student starts from."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever; of a student that starts from a library the defaults are those of ``recipe.OF_A_LIBRARY``."""
        found = super().parse_known_args(args, namespace)
        if not is_of_library(found[0].init):
            return found
        before = {name: self.get_default(name) for name in OF_A_LIBRARY}
        self.set_defaults(**OF_A_LIBRARY)
        try:
            return super().parse_known_args(args)
        finally:
            self.set_defaults(**before)


def add_data(parser: argparse.ArgumentParser, names: Sequence[str] = CLASSIFICATION, default: str = "cifar10") -> None:
    """Options that name a data set."""
    add_data_set(parser.add_argument_group("data"), names, default=default)


def add_teacher_folder(parser: argparse.ArgumentParser) -> None:
    """Where a teacher is kept."""
    parser.add_argument("--teacher-dir", default="teachers", metavar="DIR", help="where trained teachers are kept")


def add_teacher(parser: argparse.ArgumentParser) -> None:
    """Options for whom a student learns from."""
    parser.add_argument(
        "--teacher",
        metavar="WHICH",
        help="a checkpoint, torchvision:NAME, timm:NAME, or 'original' for a network that comes with its weights; "
        "without it one is trained once and kept",
    )
    parser.add_argument("--teacher-epochs", type=int, help="epochs of a teacher trained here; default: --epochs")
    add_teacher_folder(parser)
    defaults = " ".join(f"--{name} {value}" for name, value in OF_A_LIBRARY.items())
    add_init(parser, f", for which no teacher is trained, and whose defaults are {defaults}")
    parser.add_argument(
        "--attention-points",
        nargs="+",
        action="extend",
        metavar="MODULE",
        help="where student and teacher are compared; default: those of the space",
    )


def add_init(parser: argparse.ArgumentParser, of_a_library: str = "") -> None:
    """What a student starts from; ``of_a_library`` is what the help says of a library beside its name."""
    parser.add_argument(
        "--init",
        default=FRESH,
        metavar="START",
        help=f"what the student starts from: {', '.join(STARTS)}=DIR{of_a_library}; default: {FRESH}",
    )


def add_start(parser: argparse.ArgumentParser) -> None:
    """Options for what a student starts from that learns from nobody."""
    parser.add_argument(
        "--teacher",
        metavar="WHICH",
        help="checkpoint of the original network, for another --init than fresh; nothing of it is imitated",
    )
    add_init(parser)


def add_comparison(parser: argparse.ArgumentParser, methods: str = "") -> Any:
    """The group of options for networks that BlockSwap's are compared to; under NNI its tuner sets them.

    Args:
        methods: what the help says of particular methods.
    """
    compared = parser.add_argument_group("comparison")
    compared.add_argument("--method", help=f"what the result is called in a report{methods}")
    compared.add_argument("--variant", default="", help="the method's budget or setting, for the report")
    return compared


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Options of ``Recipe``."""
    default = Recipe()
    recipe = parser.add_argument_group("recipe (defaults: section 5 of the paper)")
    _add_optimisation(recipe, default)
    schedules = "cosine: from epoch to epoch; cosine_steps: from step to step; step: /10 at the milestones"
    _add(recipe, "--schedule", default.schedule, schedules, choices=SCHEDULES)
    recipe.add_argument(
        "--milestones", type=int, nargs="*", default=[], metavar="EPOCH", help="of --schedule step; none: every 30"
    )
    _add(recipe, "--warmup", default.warmup, "linear warm-up of the rate", type=float, metavar="EPOCHS")
    _add(recipe, "--label-smoothing", default.label_smoothing, "spread over all classes", type=float, metavar="SHARE")
    taught = parser.add_argument_group("what is imitated, each with its weight; all 0: no teacher")
    _add(taught, "--beta", default.beta, "weight of attention transfer", type=float)
    _add(taught, "--attention", default.attention, "form of the distance", choices=get_args(Mode))
    _add(taught, "--kd", default.kd, "weight of logit distillation", type=float)
    _add(taught, "--temperature", default.temperature, "of logit distillation", type=float)
    _add(taught, "--features", default.features, "weight of feature matching", type=float)


def add_detection_recipe(parser: argparse.ArgumentParser) -> None:
    """Options of ``DetectionRecipe``."""
    default = DetectionRecipe()
    recipe = parser.add_argument_group("recipe (defaults: torchvision's reference for Mask R-CNN)")
    _add_optimisation(recipe, default)
    milestones = "epochs after which the rate is divided by 10"
    _add(recipe, "--milestones", default.milestones, milestones, type=int, nargs="*", metavar="EPOCH")
    _add(recipe, "--warmup", default.warmup, "linear warm-up of the rate", type=int, metavar="STEPS")


def _add_optimisation(recipe: Any, default: Optimisation) -> None:
    _add(recipe, "--epochs", default.epochs, "passes over the training set", type=int)
    _add(recipe, "--batch-size", default.batch_size, "images a step, over all processes", type=int)
    _add(recipe, "--lr", default.lr, "largest learning rate; scale it with the batch size yourself", type=float)
    _add(recipe, "--optimizer", default.optimizer, "of the weights", choices=OPTIMIZERS)
    _add(recipe, "--momentum", default.momentum, "of SGD; AdamW's first beta", type=float)
    recipe.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    _add(recipe, "--weight-decay", default.weight_decay, "L2 penalty of SGD; AdamW's decoupled one", type=float)
    recipe.add_argument("--clip", type=float, metavar="NORM", help="clip gradients to this norm")
    recipe.add_argument("--accumulate", type=int, default=1, metavar="PARTS", help="compute a batch in so many parts")
    recipe.add_argument("--ema", type=float, metavar="DECAY", help="judge and keep a moving average of the weights")
    recipe.add_argument(
        "--patience", type=int, metavar="EPOCHS", help="stop after so many without a better one; the last one is kept"
    )
    _add(recipe, "--seed", default.seed, "of weights, order and augmentation", type=int)


def _add(group: Any, name: str, default: Any, about: str, **how: Any) -> None:
    """An option whose help tells its default."""
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    group.add_argument(name, default=default, help=f"{about} (default {shown})", **how)


def add_machine(parser: argparse.ArgumentParser, auto: str = "bf16-mixed on a GPU that has it") -> None:
    """Options of ``Machine``; ``auto`` is what the help says of the precision of that name."""
    machine = parser.add_argument_group("machine")
    machine.add_argument("--devices", default="1", help="how many GPUs of this machine, or 'auto' for all of them")
    machine.add_argument("--precision", default="auto", help=f"one of {', '.join(PRECISIONS)}; auto: {auto}")
    machine.add_argument("--workers", type=int, default=0, help="processes that read images (image folders)")
    machine.add_argument("--limit-steps", type=int, metavar="N", help="at most N steps an epoch, to try a command out")


def recipe_from(options: argparse.Namespace) -> Recipe:
    """The recipe that the command line gives."""
    return Recipe(**_given(options, Recipe))


def detection_recipe_from(options: argparse.Namespace) -> DetectionRecipe:
    """The recipe of a detector that the command line gives."""
    return DetectionRecipe(**_given(options, DetectionRecipe))


def _given(options: argparse.Namespace, recipe: type) -> dict[str, Any]:
    values = {field.name: getattr(options, field.name) for field in fields(recipe)}
    return {**values, "milestones": tuple(options.milestones)}


def machine_from(options: argparse.Namespace) -> Machine:
    """The machine that the command line gives."""
    return Machine(options.devices, options.precision, options.workers, options.limit_steps)


def space_args(options: argparse.Namespace) -> dict[str, Any]:
    """The space's arguments in the command line."""
    return key_values(options.space_arg, "--space-arg")


def data_options(options: argparse.Namespace) -> dict[str, Any]:
    """The data set's options in the command line."""
    return key_values(options.data_option, "--data-option")


def data_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the data, as JSON knows it: which set, where, and how much of it an epoch takes."""
    root = options.data_root
    return {
        "data": options.data,
        "data_root": None if root is None else str(Path(root).resolve()),
        "data_options": data_options(options),
        "limit_steps": options.limit_steps,
    }
