"""The trial of a classifier: a student of a teacher, or a network that students are compared to."""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.points import equal_points
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import ConfigError, shown
from nni_blockswap.ranges import COUNT
from nni_blockswap.results.trial import ARCHITECTURE
from nni_blockswap.tasks import Task, make_task
from nni_blockswap.training import options, pruning
from nni_blockswap.training.classification import ImageTraining, Teacher, check_attention
from nni_blockswap.training.condensation import deploy, learned
from nni_blockswap.training.folder import occupied, take_over
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.nni_link import NNILink
from nni_blockswap.training.program import say
from nni_blockswap.training.publishing import described, publish
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.reporting import AttentionPictures, Description, EpochReport
from nni_blockswap.training.running import Finished, fit
from nni_blockswap.training.sources import ORIGINAL, check_source
from nni_blockswap.training.starting import (
    FRESH,
    check_start,
    check_taught,
    identity,
    is_of_library,
    remembering,
    start,
    taught_by,
)
from nni_blockswap.training.student import COMPARISON, announce, begin
from nni_blockswap.training.teachers import TeacherPlan, check_fit, find_teacher, named_original


def add_comparison(command: argparse.ArgumentParser) -> None:
    """Options for networks that BlockSwap is compared to; under NNI its tuner sets them."""
    compared = options.add_comparison(command, f"; {' and '.join(pruning.METHODS)} prune the original")
    compared.add_argument("--nonzero", type=int, metavar="N", help="parameters that pruning keeps")
    compared.add_argument(
        "--recipe",
        type=json.loads,
        metavar="JSON",
        help="fields that the recipe has otherwise, of a network that is taught by a trained one of its own kind",
    )


def check(given: argparse.Namespace) -> tuple[Recipe, Machine]:
    """The recipe and the machine in the command line. Raises ConfigError where nobody could train by it."""
    check_start(given.init)
    check_source(given.teacher)
    if given.teacher_epochs is not None:
        COUNT.check("--teacher-epochs", given.teacher_epochs)
    if given.method in pruning.METHODS and given.nonzero is None:
        raise ConfigError(f"--nonzero says how many parameters {given.method} keeps.")
    if is_of_library(given.init) and given.teacher is None:
        source = taught_by(given.init)
        if source is None or not (Path(given.teacher_dir) / Path(source).name).is_file():
            raise ConfigError(_needs_teacher(given.init))
    return _recipe(given), options.machine_from(given)


def _needs_teacher(init: str) -> str:
    """What is said where no teacher is given to a student of a library: one that is trained now would be another."""
    source = taught_by(init)
    which = f"which was '{source}'" if source else f"a checkpoint, or '{ORIGINAL}' for weights that a network came with"
    return f"--init {init} needs --teacher, the one that the library learned from, {which}."


def run(given: argparse.Namespace) -> None:
    """Train the student that NNI or the command line names, and write its results."""
    architecture, out, link = begin(given)
    recipe, machine = check(given)
    architecture = remembering(architecture, given.init)
    settings = _settings(architecture, recipe, given)
    if link is not None:
        take_over(out, link.parameters, settings, _assumed())
    with occupied(out, settings, _assumed()) as own:
        announce("student", architecture, out)
        task = make_task(given.data, given.data_root, **options.data_options(given))
        teacher_epochs = given.teacher_epochs or own.began_with  # also where the run was made a longer one
        student, teacher, recipe = _prepared(architecture, task, recipe, teacher_epochs, machine, given)
        module = ImageTraining(student, task, recipe, teacher)
        report = EpochReport(link.report_epoch if link else None, module.monitor)
        callbacks = [report, Description(architecture, teacher), AttentionPictures()]
        finished = fit(module, out, machine, callbacks, run=own.name)
        if finished.trainer.is_global_zero:
            _conclude(architecture, module, teacher, finished, out, link, given)


def _settings(architecture: Architecture, recipe: Recipe, given: argparse.Namespace) -> dict[str, Any]:
    """What makes the run the one that it is."""
    of_teacher = {"teacher": given.teacher, "teacher_epochs": given.teacher_epochs}
    started = {"init": identity(given.init), "attention_points": given.attention_points}
    named = {"architecture_id": architecture.id, **options.data_settings(given)}
    return {**named, **of_teacher, **started, **recipe.settings(), **_compared(given)}


def _assumed() -> dict[str, Any]:
    """What the folder of an older version means that does not know these settings."""
    return {**Recipe().settings(), "init": FRESH, "attention_points": None}


def _recipe(given: argparse.Namespace) -> Recipe:
    """The command line's, with what ``--recipe`` changes. Raises ConfigError for a field that there is not."""
    changed = {} if given.recipe is None else given.recipe
    if not isinstance(changed, dict):
        raise ConfigError(f'--recipe maps fields to values, as in {{"lr": 0.05}}; not {shown(changed)}.')
    unknown = changed.keys() - Recipe.__dataclass_fields__.keys()
    if unknown:
        raise ConfigError(f"a recipe has no '{min(unknown)}'; it has {', '.join(Recipe.__dataclass_fields__)}.")
    return replace(options.recipe_from(given), **changed)


def _prepared(
    architecture: Architecture,
    task: Task,
    recipe: Recipe,
    teacher_epochs: int,
    machine: Machine,
    given: argparse.Namespace,
) -> tuple[nn.Module, Teacher | None, Recipe]:
    """The network to train, its teacher, and the recipe as the method has it."""
    with seeded(recipe.seed):
        student: Any = architecture.build()
    check_fit(architecture, task)
    if given.attention_points:
        student.attention_points = tuple(dict.fromkeys(given.attention_points))
    if recipe.beta or recipe.features:
        check_attention(student)
    teacher = None
    if recipe.imitates or given.method == pruning.L1_PRUNING or given.init != FRESH:
        untrained = _needs_teacher(given.init) if is_of_library(given.init) else None
        plan = TeacherPlan(given.teacher, Path(given.teacher_dir), recipe.of_teacher(teacher_epochs), untrained)
        of_the_space = architecture if given.recipe is not None else named_original(given) or architecture
        data_options = options.data_options(given)
        is_right = partial(check_taught, given.init, given.data, data_options)
        teacher = find_teacher(of_the_space, task, data_options, plan, machine, is_right)
        teacher.points = student.attention_points
    if teacher is not None and recipe.features:
        images, _ = task.minibatch(1, seed=recipe.seed)
        teacher.matched = equal_points(student, teacher.network, teacher.points, images)
    if given.init != FRESH or not isinstance(student, BlockSpace):  # a space's constructor draws fresh weights itself
        said = start(student, given.init, teacher.network if teacher else None, recipe.seed)
        say(f"the student starts from {said}.")
    if given.method in pruning.METHODS:
        pruning.prune_student(student, given.method, given.nonzero, teacher.network if teacher else None, task, recipe)
    if given.method == pruning.L1_PRUNING:
        recipe = replace(recipe, lr=recipe.lr * pruning.FINE_TUNING)
    return student, teacher, recipe


def _conclude(
    architecture: Architecture,
    module: ImageTraining,
    teacher: Teacher | None,
    finished: Finished,
    out: Path,
    link: NNILink | None,
    given: argparse.Namespace,
) -> None:
    """Publish, and say how it ended."""
    metric = module.task.metric
    value, best = module.figures[metric.key], finished.best
    figures = {**module.figures, f"best_{metric.key}": best, **_compared(given)}
    if teacher is not None:
        figures[f"teacher_{metric.key}"] = teacher.figure
    if given.method in pruning.METHODS:
        pruning.make_permanent(module.network)
        figures["params"] = given.nonzero
    if learned(module.evaluated):
        deploy(module.evaluated)
        arguments = {**architecture.space_args, "deployed": True}
        deployed = Architecture.from_choices(architecture.space, architecture.choices, arguments)
        deployed.save(out / ARCHITECTURE)
        figures |= {"params": deployed.params, "macs": deployed.macs}
    publish(out, module.evaluated, finished, metric=metric, figures=figures, about=described(architecture), link=link)
    say(f"done: {metric} {metric.show(value)} (best epoch {metric.show(best)}); results in '{out}'.")


def _compared(given: argparse.Namespace) -> dict[str, Any]:
    """What names this run among those it is compared to; nothing outside a comparison."""
    named = {name: getattr(given, name) for name in COMPARISON if name != "recipe"} if given.method else {}
    named["own_kind"] = None if given.recipe is None else True
    return {name: value for name, value in named.items() if value is not None}
