"""The command line that the trials share: a recipe, a data set, a machine."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

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


def add_data(parser: argparse.ArgumentParser, default: str = "cifar10") -> None:
    """Options that name a data set."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", default=default, help="data set: digits, cifar10, cifar100, image-folder, imagenet, coco"
    )
    data.add_argument("--data-root", metavar="DIR", help="folder that holds the data set")
    add_key_values(data, "--data-option", about="options of the data set")


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
    add_init(parser)
    parser.add_argument(
        "--attention-points",
        nargs="+",
        metavar="MODULE",
        help="where student and teacher are compared; default: those of the space",
    )


def add_init(parser: argparse.ArgumentParser) -> None:
    """What a student starts from."""
    parser.add_argument(
        "--init",
        default=FRESH,
        metavar="START",
        help=f"what the student starts from: {', '.join(STARTS)}=DIR; default: {FRESH}",
    )


def add_start(parser: argparse.ArgumentParser) -> None:
    """Options for what a student starts from that learns from nobody."""
    parser.add_argument(
        "--teacher",
        metavar="WHICH",
        help="checkpoint of the original network, for another --init than fresh; nothing of it is imitated",
    )
    add_init(parser)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Options of ``Recipe``."""
    default = Recipe()
    recipe = parser.add_argument_group("recipe (defaults: section 5 of the paper)")
    _add_optimisation(recipe, default)
    recipe.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default=default.schedule,
        help="cosine: from epoch to epoch; cosine_steps: from step to step; step: /10 at the milestones",
    )
    recipe.add_argument(
        "--milestones", type=int, nargs="*", default=[], metavar="EPOCH", help="of --schedule step; none: every 30"
    )
    recipe.add_argument("--warmup", type=float, default=0.0, metavar="EPOCHS", help="linear warm-up of the rate")
    recipe.add_argument("--label-smoothing", type=float, default=0.0, metavar="SHARE", help="spread over all classes")
    taught = parser.add_argument_group("what is imitated, each with its weight; all 0: no teacher")
    taught.add_argument("--beta", type=float, default=default.beta, help="weight of attention transfer")
    taught.add_argument("--attention", choices=get_args(Mode), default=default.attention, help="form of the distance")
    taught.add_argument("--kd", type=float, default=0.0, help="weight of logit distillation")
    taught.add_argument("--temperature", type=float, default=default.temperature, help="of logit distillation")
    taught.add_argument("--features", type=float, default=0.0, help="weight of feature matching")


def add_detection_recipe(parser: argparse.ArgumentParser) -> None:
    """Options of ``DetectionRecipe``."""
    default = DetectionRecipe()
    recipe = parser.add_argument_group("recipe (defaults: torchvision's reference for Mask R-CNN)")
    _add_optimisation(recipe, default)
    recipe.add_argument(
        "--milestones",
        type=int,
        nargs="*",
        default=default.milestones,
        help="epochs after which the rate is divided by 10",
    )
    recipe.add_argument(
        "--warmup", type=int, default=default.warmup, metavar="STEPS", help="linear warm-up of the rate"
    )


def _add_optimisation(recipe: Any, default: Optimisation) -> None:
    recipe.add_argument("--epochs", type=int, default=default.epochs)
    recipe.add_argument("--batch-size", type=int, default=default.batch_size, help="images a step, over all processes")
    recipe.add_argument("--lr", type=float, default=default.lr, help="largest learning rate; it grows with the batch")
    recipe.add_argument("--optimizer", choices=OPTIMIZERS, default=default.optimizer)
    recipe.add_argument("--momentum", type=float, default=default.momentum, help="of SGD; AdamW's first beta")
    recipe.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    recipe.add_argument("--weight-decay", type=float, default=default.weight_decay)
    recipe.add_argument("--clip", type=float, metavar="NORM", help="clip gradients to this norm")
    recipe.add_argument("--accumulate", type=int, default=1, metavar="PARTS", help="compute a batch in so many parts")
    recipe.add_argument("--ema", type=float, metavar="DECAY", help="judge and keep a moving average of the weights")
    recipe.add_argument("--patience", type=int, metavar="EPOCHS", help="stop after so many without a better one")
    recipe.add_argument("--seed", type=int, default=default.seed)


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
