"""Train Mask R-CNN over a substituted ResNet from scratch, the paper's section 7: ``python -m trial.detect``.

Under NNI the architecture comes from the tuner and everything is written to the trial's output folder. Outside NNI:

    python -m trial.detect --architecture best.json --data-root DIR --out DIR --devices auto

The architecture may be one of ``MaskRCNNSpace`` or of ``ResNetSpace``, whose choices carry over. The same command in
the same folder goes on where a killed run stopped.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.space import seeded
from nni_blockswap.errors import ConfigError
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.coco import Coco
from nni_blockswap.training import options
from nni_blockswap.training.classification import loaders
from nni_blockswap.training.detection import DetectionRecipe, DetectionTraining
from nni_blockswap.training.nni_link import NNILink, is_first_process
from nni_blockswap.training.reporting import Description, EpochReport
from nni_blockswap.training.running import fit, in_terminal, main, say
from nni_blockswap.training.student import add_student, begin, claim, publish, released_on_failure

CLASSIFIER, DETECTOR = "search_spaces.resnet:ResNetSpace", "search_spaces.mask_rcnn:MaskRCNNSpace"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser("python -m trial.detect", description=__doc__.partition("\n")[0])
    add_student(command)
    options.add_space(command)
    options.add_data(command, default="coco")
    default = DetectionRecipe()
    recipe = command.add_argument_group("recipe (defaults: torchvision's reference for Mask R-CNN)")
    recipe.add_argument("--epochs", type=int, default=default.epochs)
    recipe.add_argument("--batch-size", type=int, default=default.batch_size, help="images a step, over all processes")
    recipe.add_argument("--lr", type=float, default=default.lr, help="learning rate; scale it with the batch size")
    recipe.add_argument("--momentum", type=float, default=default.momentum)
    recipe.add_argument("--weight-decay", type=float, default=default.weight_decay)
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
    recipe.add_argument("--clip", type=float, default=None, metavar="NORM", help="clip gradients to this norm")
    recipe.add_argument("--seed", type=int, default=default.seed)
    options.add_machine(command, auto="32-true, as boxes need it")
    return command


def detector(architecture: Architecture, space_args: Mapping[str, Any]) -> Architecture:
    """The Mask R-CNN with the choices of ``architecture``.

    Args:
        architecture: of ``MaskRCNNSpace``, or of ``ResNetSpace``, whose depth and extra substitutes it then has.
        space_args: arguments of ``MaskRCNNSpace`` that override those of the architecture.

    Raises:
        ConfigError: it is of another space, or of a narrowed ResNet.
    """
    if architecture.space not in (CLASSIFIER, DETECTOR):
        raise ConfigError(
            f"a detector is made from an architecture of {DETECTOR} or {CLASSIFIER}, not {architecture.space}."
        )
    width = architecture.space_args.get("late_width", 1.0)
    if width != 1.0:
        raise ConfigError(f"a detector's backbone has its full width; this architecture has late_width={width}.")
    shared = architecture.space_args.keys() if architecture.space == DETECTOR else ("depth", "extra")
    arguments = {**{name: architecture.space_args[name] for name in shared}, **space_args}
    found = Architecture.from_choices(DETECTOR, architecture.choices, arguments)
    return found if architecture.score is None else found.scored(architecture.score, architecture.provenance)


def run() -> None:
    """Train one detector."""
    given = parser().parse_args()
    architecture, out, link = begin(given)
    with released_on_failure(out):
        detect(detector(architecture, options.pairs(given.space_args, "--space-args")), given, out, link)


def detect(architecture: Architecture, given: argparse.Namespace, out: Path, link: NNILink | None) -> None:
    """Train ``architecture`` and write its results to ``out``."""
    recipe, machine = _recipe(given), options.machine_from(given)
    if machine.precision == "auto":  # torchvision decodes boxes in its heads' type; bfloat16 steps 4 pixels from 512 on
        machine = replace(machine, precision="32-true")
    if is_first_process():
        settings = options.data_settings(given) | asdict(recipe) | {"milestones": list(recipe.milestones)}
        claim(out, architecture, settings)
    say(f"detector {architecture.id}: {architecture.params:,} parameters, {architecture.macs:,} MACs.")
    task = make_task(given.data, given.data_root, **options.pairs(given.data_option, "--data-option"))
    if not isinstance(task, Coco):
        raise ConfigError(f"a detector is trained on coco, not on {task.name}.")
    if architecture.space_args["num_classes"] < task.num_classes:
        raise ConfigError(
            f"{task.name} has {task.num_classes} classes, the background included, and the network "
            f"{architecture.space_args['num_classes']}; set num_classes."
        )
    with seeded(recipe.seed):
        network = architecture.build()
    module = DetectionTraining(network, task, recipe)
    report = EpochReport(link.report_epoch if link else None, "val/box/AP", None if in_terminal() else say)
    finished = fit(
        module,
        loaders(task, machine.workers),
        out,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        machine=machine,
        monitor="val/box/AP",
        clip=recipe.clip,
        callbacks=[report, Description(architecture, None)],
    )
    if finished.trainer.is_global_zero:
        figures = {name.replace("/", "_"): value for name, value in module.figures.items()}
        best = {"best_box_AP": finished.best}
        publish(architecture, network, finished, out, link, default=figures["box_AP"], figures=figures | best)
        say(f"done: box AP {figures['box_AP']:.1%}, mask AP {figures['mask_AP']:.1%}; results in '{out}'.")


def _recipe(given: argparse.Namespace) -> DetectionRecipe:
    values = {field.name: getattr(given, field.name) for field in fields(DetectionRecipe)}
    return DetectionRecipe(**{**values, "milestones": tuple(given.milestones)})


if __name__ == "__main__":
    main("trial.detect", run)
