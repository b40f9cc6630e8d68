"""Distillation of any network on any data, as a function: what a notebook calls, and a program of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_blockswap.metric import Metric
from nni_blockswap.results.trial import WEIGHTS
from nni_blockswap.tasks.base import fingerprint
from nni_blockswap.tasks.loader import Judge, LoaderTask, Loss
from nni_blockswap.training import checkpoints
from nni_blockswap.training.classification import ImageTraining, Teacher
from nni_blockswap.training.folder import Run, occupied
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.preparing import (
    answer,
    batches_of,
    copy_of,
    first_batch_digest,
    left_alone,
    network_of,
    points_of,
    recipe_of,
    structure_digest,
    task_of,
)
from nni_blockswap.training.program import quietly, say
from nni_blockswap.training.publishing import publish
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.reporting import AttentionPictures, EpochReport, History
from nni_blockswap.training.running import evaluate, fit
from nni_blockswap.training.starting import identity, start

BEST_WEIGHTS = "best_weights.pt"


@dataclass(frozen=True)
class Distilled:
    """A student that was trained.

    Attributes:
        student: the network that was given, with its weights after the last epoch (of their average, with ``ema``).
        metric: how good it is on ``val`` after the last epoch; ``judged_by`` says in what.
        best: the best of all epochs.
        teacher_metric: the same of its teacher, or None.
        figures: all that was measured on ``val`` after the last epoch, by name.
        history: what was measured in each epoch, by name; the first first.
        weights, best_weights: state_dicts after the last and the best epoch.
    """

    student: nn.Module = field(repr=False)
    metric: float
    best: float
    teacher_metric: float | None
    judged_by: Metric
    figures: Mapping[str, float]
    history: Sequence[Mapping[str, float]] = field(repr=False)
    weights: Path
    best_weights: Path


def distill(
    student: nn.Module,
    teacher: nn.Module | None = None,
    train: Any = None,
    val: Any = None,
    *,
    epochs: int,
    out: str | Path,
    init: str | None = None,
    loss: Loss | None = None,
    metric: tuple[str | Metric, Judge] | None = None,
    attention_points: Sequence[str] | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    precision: str = "auto",
    limit_steps: int | None = None,
    **recipe: Any,
) -> Distilled:
    """Train ``student`` to answer as the labels say and to imitate ``teacher``; a GPU is used where there is one.

        loss = own loss + beta * attention + kd * logits + features * activations

    Weights, figures and curves go to ``out`` after each epoch. The same call with the same ``out`` goes on where a
    killed one stopped; with more ``epochs`` it trains on.

    Args:
        student: any network that takes a batch of images; it is trained in place.
        teacher: a trained network, which is not changed; None with ``beta=0``.
        train: batches (images, labels): a DataLoader, any iterable of batches that can be iterated again, a torch
            Dataset, or a LightningDataModule, which has those of ``val``, too.
        val: the same, to be judged on.
        init: "teacher" copies what the teacher has of the same names and shapes, "fresh" draws new weights,
            "library=DIR" takes swapped blocks from a library and the rest from the teacher, of a student that an
            Architecture built; None leaves the student as it is.
        loss: of outputs and labels, a scalar; None is cross-entropy.
        metric: a name and a function of outputs and labels, the mean over a batch, higher being better (else a
            ``Metric``); None is accuracy where labels are classes, else the loss.
        attention_points: modules, by path, at whose outputs student and teacher are compared; None finds the ends of
            their stages, see ``points.attention_points``.
        batch_size: images a batch, for Datasets (128 unless given).
        workers: processes that read them.
        precision: "auto", "32-true", "16-mixed" or "bf16-mixed".
        limit_steps: at most so many batches an epoch, to try things out.
        recipe: all other fields of ``Recipe``: ``lr``, ``optimizer``, ``schedule``, ``warmup``, ``beta``, ``kd``,
            ``temperature``, ``features``, ``ema``, ``patience``, ``seed``, ...; of a student that starts from a library
            those of ``recipe.OF_A_LIBRARY`` are the defaults.

    Raises:
        BlockSwapError: something given does not fit; ``out`` holds another run; or training diverged.

    Example:
        >>> import tempfile, torch
        >>> images = torch.linspace(-1, 1, 64).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        >>> batches = [(images, (images[:, 0, 0, 0] > 0).long())] * 8
        >>> student = nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())
        >>> with tempfile.TemporaryDirectory() as out:  # doctest: +ELLIPSIS
        ...     result = distill(student, None, batches, batches[:1], epochs=3, out=out, beta=0, lr=1.0)
        epoch 1/3: ...
        >>> result.metric > 0.9
        True
    """
    out, given = Path(out), student
    plan = recipe_of(epochs, train, batch_size, init, recipe)
    machine = Machine("1", precision, workers, limit_steps)
    batches = batches_of(train, val, plan.batch_size // plan.accumulate, workers)
    with quietly(), left_alone(*batches):
        student = network_of(student, "student")
        teacher = None if teacher is None else copy_of(network_of(teacher, "teacher"))
        images, _ = batches[0].first()
        outputs = answer(student, "student", images)
        task = task_of(batches, student, outputs, loss, metric, plan)
        points, matched = points_of(student, teacher, images[:1], outputs, attention_points, plan)
        settings = {
            **plan.settings(),
            "batch_size": batch_size,
            "limit_steps": limit_steps,
            "init": init and identity(init),
            "attention_points": list(points),
            "judged_by": task.metric.recorded(),
            "data": first_batch_digest(batches[1]),
            "student": structure_digest(student),
            "teacher": None if teacher is None else fingerprint(teacher.state_dict().values()),
        }
        with occupied(out, settings, Recipe().settings()) as run:
            if init is not None:
                say(f"the student starts from {start(student, init, teacher, plan.seed)}.")
            taught = _teacher(teacher, points, matched, task, machine, plan)
            trained = _trained(student, taught, task, plan, machine, out, run)
    return replace(trained, student=given.eval())


def _trained(
    student: nn.Module, teacher: Teacher | None, task: LoaderTask, recipe: Recipe, machine: Machine, out: Path, run: Run
) -> Distilled:
    before = next((weight.device for weight in student.parameters()), torch.device("cpu"))
    module = ImageTraining(student, task, recipe, teacher)
    history = History()
    callbacks = [EpochReport(None, module.monitor), history, AttentionPictures()]
    try:
        finished = fit(module, out, machine, callbacks, run=run.name)
    finally:
        student.to(before)
    if module.average is not None:
        student.load_state_dict(module.evaluated.state_dict())
    metric, value = task.metric, module.figures[task.metric.key]
    about = {"params": sum(weight.numel() for weight in student.parameters())}
    figures: dict[str, Any] = {**module.figures, f"best_{metric.key}": finished.best}
    if teacher is not None:
        figures[f"teacher_{metric.key}"] = teacher.figure
    publish(out, student, finished, metric=metric, figures=figures, about=about)
    best = out / BEST_WEIGHTS
    checkpoints.save(module.weights_in(checkpoints.read(out / checkpoints.BEST)), best)
    say(f"done: {metric} {metric.show(value)} (best epoch {metric.show(finished.best)}); results in '{out}'.")
    return Distilled(
        student,
        value,
        finished.best,
        None if teacher is None else teacher.figure,
        metric,
        module.figures,
        history.epochs,
        out / WEIGHTS,
        best,
    )


def _teacher(
    teacher: nn.Module | None,
    points: Sequence[str],
    matched: Sequence[str],
    task: LoaderTask,
    machine: Machine,
    recipe: Recipe,
) -> Teacher | None:
    """The teacher, and how good it is."""
    if teacher is None:
        return None
    found = Teacher(teacher, points, evaluate(ImageTraining(teacher, task, recipe), machine), matched)
    say(f"teacher: validation {task.metric} {task.metric.show(found.figure)}.")
    return found
