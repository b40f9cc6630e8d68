"""Teachers: from a checkpoint, from torchvision or timm by name, or trained once and kept for every later trial."""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback
from torch import nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import CheckpointError, ConfigError
from nni_blockswap.files import locked
from nni_blockswap.metric import ACCURACY
from nni_blockswap.networks import check_tensors_alone, hold_the_same
from nni_blockswap.own_options import own_network
from nni_blockswap.results.trial import ARCHITECTURE, WEIGHTS
from nni_blockswap.scoring import scorer as scoring
from nni_blockswap.spaces import with_space
from nni_blockswap.tasks import Task, make_task
from nni_blockswap.training import checkpoints, options
from nni_blockswap.training.classification import ImageTraining, Teacher
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.nni_link import is_first_process
from nni_blockswap.training.program import say
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.reporting import EpochReport
from nni_blockswap.training.running import evaluate, fit
from nni_blockswap.training.sources import ORIGINAL, read_source
from nni_blockswap.training.unwrapping import load_weights

HARDLY = 1.5
"""How many times chance the accuracy of a teacher should be."""

TOLD = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "schedule", "beta", "attention", "clip", "seed")
"""Settings that always name a teacher. Others do where they are not as usual, so that an option that is new leaves the
teachers that are kept already."""


@dataclass(frozen=True)
class TeacherPlan:
    """Which teacher to take.

    Attributes:
        source: a checkpoint's path; "torchvision:" and a model's or its weights' name, or "timm:" and a model's;
            "original" for the network as it is made, with the weights that it comes with; None trains one.
        folder: where trained teachers are kept.
        recipe: how one is trained.
        untrained: what is said where one would have to be trained that would be no use; None where it may be.
    """

    source: str | None
    folder: Path
    recipe: Recipe
    untrained: str | None = None


def run(given: argparse.Namespace) -> None:
    """Train the teacher that the command line names, unless it is there already."""
    recipe, machine = options.recipe_from(given), options.machine_from(given)
    data_options = options.data_options(given)
    task = make_task(given.data, given.data_root, **data_options)
    named = (
        Architecture.load(given.architecture, allow=given.allow) if given.architecture is not None else _original(given)
    )
    plan = TeacherPlan(None, Path(given.teacher_dir), recipe.of_teacher(None))
    teacher = find_teacher(named, task, data_options, plan, machine)
    if given.out is not None and is_first_process():
        path = Path(given.out) / WEIGHTS
        checkpoints.save(checkpoints.plain_state(teacher.network), path)
        say(f"its weights are in '{path}'.")


def find_teacher(
    architecture: Architecture,
    task: Task,
    data_options: Mapping[str, Any],
    plan: TeacherPlan,
    machine: Machine,
    check: Callable[[nn.Module], None] = lambda network: None,
) -> Teacher:
    """The teacher of ``architecture``, checked: it fits the space, and how good it is on the validation set is known.

    Args:
        check: raises where it is not the right one, before it is judged, which takes long.

    Raises:
        CheckpointError: it cannot be found, read, or does not fit.
    """
    original = architecture.teacher()
    source = plan.source
    if source is None:
        source = str(trained_teacher(original, task, data_options, plan, machine))
    try:
        network = given_teacher(original, source)
    except CheckpointError as error:
        if plan.source is not None:
            raise
        raise CheckpointError(f"{str(error).rstrip('.')}; delete it, and the teacher is trained anew.") from error
    check_fit(original, task)
    check(network)
    teacher = Teacher(network, network.attention_points, evaluate(ImageTraining(network, task, plan.recipe), machine))
    judged = f"validation {task.metric} {task.metric.show(teacher.figure)}"
    say(f"teacher: {original.params:,} parameters, {judged}, from '{source}'.")
    is_told = task.metric == ACCURACY and task.num_classes > 0  # of labels at every position nobody knows how many
    if is_told and is_first_process() and teacher.figure < HARDLY / task.num_classes:
        say("warning: that is hardly better than guessing, and what a student learns from it is no better.")
    return teacher


def given_teacher(original: Architecture, source: str) -> Any:
    """The network of ``original`` with the weights that ``source`` names, as in a ``TeacherPlan``.

    Raises:
        CheckpointError: they cannot be found, read, or do not fit.
        ConfigError: the network keeps what a checkpoint does not.
    """
    network: Any = original.build()
    check_tensors_alone(network, "the network", "checkpoints hold tensors alone")
    if source == ORIGINAL and not hold_the_same(network, original.build()):
        named = original.space_args.get("model", original.space)
        raise CheckpointError(
            f"'{ORIGINAL}' is a network of your own that comes with its weights, and {named} draws new ones; name a "
            "checkpoint."
        )
    if source != ORIGINAL:
        load_weights(network, read_source(source), source)
    return network


def _original(given: argparse.Namespace) -> Architecture:
    """The original network of the space, or the network of one's own, in the command line."""
    named = with_space({"space": given.space, "space_args": options.space_args(given), **own_network(given)})
    if named["space"] is None:
        raise ConfigError(
            "--space MODULE:CLASS, --model MODULE:FUNCTION or --architecture FILE says whose teacher to train."
        )
    return Architecture.original(named["space"], named["space_args"])


def named_original(given: argparse.Namespace) -> Architecture | None:
    """The original network of the space in the command line, or None where it names none."""
    return None if given.space is None else Architecture.original(given.space, options.space_args(given))


def trained_teacher(
    original: Architecture,
    task: Task,
    data_options: Mapping[str, Any],
    plan: TeacherPlan,
    machine: Machine,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """The kept weights of ``original`` trained on ``task``; trained now if nobody did.

    One process trains and any others wait: the lock is the operating system's, so it falls with the process that holds
    it, and the next one goes on from the last checkpoint. Training takes one device.
    """
    path = plan.folder / f"{original.id}-{task.name}-{_fingerprint(task, data_options, plan.recipe, machine)}.pt"
    if path.exists():
        return path
    if plan.untrained is not None:
        raise ConfigError(plan.untrained)
    if not is_first_process():
        raise CheckpointError(f"the teacher '{path}' should have been trained by the first process.")
    lock, taken = path.with_suffix(".lock"), "another trial is training the teacher; waiting for it."
    with locked(lock, waiting=lambda: say(taken)):
        if not path.exists():
            _train(original, task, plan.recipe, machine, path, callbacks)
    return path


def _train(
    original: Architecture, task: Task, recipe: Recipe, machine: Machine, path: Path, callbacks: Sequence[Callback]
) -> None:
    say(f"training the teacher once: {original.params:,} parameters, {recipe.epochs} epochs; to be kept as '{path}'.")
    with seeded(recipe.seed):
        network: Any = original.build()
    check_fit(original, task)
    out = path.with_suffix("")
    module = ImageTraining(network, task, recipe)
    fit(module, out, replace(machine, devices="1"), [EpochReport(None, module.monitor), *callbacks], run=path.stem)
    original.save(out / ARCHITECTURE)
    checkpoints.save(checkpoints.plain_state(module.evaluated), path)


def _fingerprint(task: Task, data_options: Mapping[str, Any], recipe: Recipe, machine: Machine) -> str:
    """Of all that makes a teacher what it is; an image tells data sets of the same name apart."""
    image = task.fingerprint(task.minibatch(1, seed=0, augment=False))
    usual = Recipe().settings()
    told = {name: value for name, value in recipe.settings().items() if name in TOLD or value != usual[name]}
    text = json.dumps([told, dict(data_options), image, machine.limit_steps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_fit(architecture: Architecture, task: Task) -> None:
    """Raise ConfigError unless the architecture is one for the task, its images and its classes."""
    batch = task.minibatch(1, seed=0, augment=False)
    scoring.check_fit(architecture.space, architecture.space_args, task, batch)
