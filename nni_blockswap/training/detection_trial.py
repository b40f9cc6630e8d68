"""The trial of a detector, trained from scratch, or from the weights of a teacher or a library."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import ConfigError
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.coco import Coco
from nni_blockswap.training import options
from nni_blockswap.training.detection import DetectionTraining
from nni_blockswap.training.folder import occupied, take_over
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.nni_link import NNILink
from nni_blockswap.training.program import say
from nni_blockswap.training.publishing import described, publish
from nni_blockswap.training.recipe import DetectionRecipe
from nni_blockswap.training.reporting import Description, EpochReport
from nni_blockswap.training.running import Finished, fit
from nni_blockswap.training.sources import check_source
from nni_blockswap.training.starting import FRESH, check_start, check_taught, identity, remembering, start
from nni_blockswap.training.student import announce, begin
from nni_blockswap.training.teachers import check_fit, given_teacher


def detector(
    architecture: Architecture, space_args: Mapping[str, Any], *, detectors: str, classifiers: str
) -> Architecture:
    """The detector with the choices of ``architecture``.

    Args:
        architecture: of ``detectors``, or of ``classifiers``, whose depth and extra substitutes it then has.
        space_args: arguments of ``detectors`` that override those of the architecture.
        detectors, classifiers: two spaces whose blocks have the same labels.

    Raises:
        ConfigError: it is of another space, or of a narrowed classifier.
    """
    if architecture.space not in (classifiers, detectors):
        raise ConfigError(
            f"a detector is made from an architecture of {detectors} or {classifiers}, not {architecture.space}."
        )
    width = architecture.space_args.get("late_width", 1.0)
    if width != 1.0:
        raise ConfigError(f"a detector's backbone has its full width; this architecture has late_width={width}.")
    shared = architecture.space_args.keys() if architecture.space == detectors else ("depth", "extra")
    arguments = {**{name: architecture.space_args[name] for name in shared}, **space_args}
    found = Architecture.from_choices(detectors, architecture.choices, arguments)
    return found if architecture.score is None else found.scored(architecture.score, architecture.provenance)


def check(given: argparse.Namespace) -> tuple[DetectionRecipe, Machine]:
    """The recipe and the machine in the command line. Raises ConfigError where nobody could train by it."""
    check_start(given.init)
    if given.init != FRESH and given.teacher is None:
        raise ConfigError(f"--init {given.init} needs --teacher CHECKPOINT, as no detector is trained to be a teacher.")
    if given.init == FRESH and given.teacher is not None:
        raise ConfigError("a detector imitates nobody; give --init teacher or --init library=DIR beside --teacher.")
    check_source(given.teacher)
    return options.detection_recipe_from(given), _exact(options.machine_from(given))


def run(given: argparse.Namespace, *, detectors: str, classifiers: str) -> None:
    """Train the detector that NNI or the command line names, and write its results; see ``detector``."""
    found, out, link = begin(given)
    recipe, machine = check(given)
    architecture = detector(found, options.space_args(given), detectors=detectors, classifiers=classifiers)
    architecture = remembering(architecture, given.init)
    settings = _settings(architecture, recipe, given)
    if link is not None:
        take_over(out, link.parameters, settings, _assumed())
    with occupied(out, settings, _assumed()) as own:
        announce("detector", architecture, out)
        task = _task(architecture, given)
        module = DetectionTraining(_started(architecture, recipe, given), task, recipe)
        report = EpochReport(link.report_epoch if link else None, module.monitor)
        finished = fit(module, out, machine, [report, Description(architecture, None)], run=own.name)
        if finished.trainer.is_global_zero:
            _conclude(architecture, module, finished, out, link, _compared(given))


def _settings(architecture: Architecture, recipe: DetectionRecipe, given: argparse.Namespace) -> dict[str, Any]:
    """What makes the run the one that it is."""
    named = {"architecture_id": architecture.id, **options.data_settings(given)}
    return {**named, "teacher": given.teacher, "init": identity(given.init), **recipe.settings()}


def _assumed() -> dict[str, Any]:
    """What the folder of an older version means that does not know these settings."""
    return {**DetectionRecipe().settings(), "teacher": None, "init": FRESH}


def _started(architecture: Architecture, recipe: DetectionRecipe, given: argparse.Namespace) -> nn.Module:
    """The detector with the weights that it starts from."""
    with seeded(recipe.seed):
        network = architecture.build()
    if given.init != FRESH:  # the space's constructor has drawn fresh ones
        teacher = given_teacher(architecture.teacher(), given.teacher)
        check_taught(given.init, given.data, options.data_options(given), teacher)
        say(f"the detector starts from {start(network, given.init, teacher, recipe.seed)}.")
    return network


def _exact(machine: Machine) -> Machine:
    """Torchvision decodes boxes in its heads' type; bfloat16 steps 4 pixels from 512 on."""
    return replace(machine, precision="32-true") if machine.precision == "auto" else machine


def _task(architecture: Architecture, given: argparse.Namespace) -> Coco:
    task = make_task(given.data, given.data_root, **options.data_options(given))
    check_fit(architecture, task)
    if not isinstance(task, Coco):
        raise ConfigError(f"a detector is trained on coco, not on {task.name}.")
    return task


def _conclude(
    architecture: Architecture,
    module: DetectionTraining,
    finished: Finished,
    out: Path,
    link: NNILink | None,
    compared: Mapping[str, Any],
) -> None:
    """Publish, and say how it ended."""
    metric = module.task.metric
    figures = {name.replace("/", "_"): value for name, value in module.figures.items()}
    figures |= {f"best_{metric.key}": finished.best, **compared}
    publish(out, module.evaluated, finished, metric=metric, figures=figures, about=described(architecture), link=link)
    say(f"done: box AP {figures['box_AP']:.1%}, mask AP {figures['mask_AP']:.1%}; results in '{out}'.")


def _compared(given: argparse.Namespace) -> dict[str, Any]:
    """What names this run among those it is compared to; nothing outside a comparison."""
    return {name: getattr(given, name) for name in ("method", "variant", "seed")} if given.method else {}
