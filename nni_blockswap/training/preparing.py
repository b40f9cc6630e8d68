"""What a user hands to ``distill``, looked at and tried before any work."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nni_blockswap.blocks.capture import captured
from nni_blockswap.blocks.points import equal_points, moved, shared_points, undisturbed
from nni_blockswap.draws import drawing, undrawn
from nni_blockswap.errors import ConfigError, DataError, first_line
from nni_blockswap.metric import ACCURACY, Metric
from nni_blockswap.networks import check_tensors_alone, copied, unwrapped
from nni_blockswap.tasks.base import fingerprint
from nni_blockswap.tasks.data_module import is_data_module, loaders_of
from nni_blockswap.tasks.loader import (
    Judge,
    LoaderTask,
    Loss,
    LossTask,
    OwnBatches,
    is_sized,
    own_batches,
    usual_metric,
)
from nni_blockswap.training.attention import attention_distances
from nni_blockswap.training.machine import training_device
from nni_blockswap.training.program import say
from nni_blockswap.training.recipe import OF_A_LIBRARY, TERMS, Recipe
from nni_blockswap.training.starting import check_start, is_of_library

RESERVED = ("loss", "top5", "params", "epochs", "seconds", "metric", "versions")
"""Names that a result has already."""

USUAL_BATCH = Recipe.batch_size
"""Images a batch of a Dataset, where nobody says how many."""


def recipe_of(epochs: int, train: Any, batch_size: int | None, init: str | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe, with the defaults that suit ``init``.

    A batch that comes ready made is one part of a step, so that ``batch_size`` is then ``accumulate``, the parts.
    """
    known = {field.name for field in fields(Recipe)} - {"epochs", "batch_size"}
    for name in given.keys() - known:
        raise ConfigError(f"distill has no option '{name}'; a recipe's are {', '.join(sorted(known))}.")
    if batch_size is not None and not isinstance(train, Dataset):
        raise ConfigError("batch_size is for a Dataset; the batches of train have a size already.")
    if init is not None:
        check_start(init)
    size = given.get("accumulate", 1)
    if isinstance(train, Dataset):
        size = USUAL_BATCH if batch_size is None else batch_size
    usual = OF_A_LIBRARY if is_of_library(init) else {}
    return Recipe(epochs=epochs, batch_size=size, **{**usual, **given})


def batches_of(train: Any, val: Any, batch_size: int, workers: int) -> tuple[OwnBatches, OwnBatches]:
    """Those to learn from, and those to be judged on; ``batch_size`` is that of a Dataset ``train``."""
    judged = batch_size if isinstance(train, Dataset) else USUAL_BATCH
    if is_data_module(train):
        if val is not None:
            raise ConfigError("a LightningDataModule has its own validation batches; leave val out.")
        train, val = loaders_of(train)
    return (
        own_batches(train, "train", batch_size, shuffle=True, drop_last=True, workers=workers),
        own_batches(val, "val", judged, workers=workers),
    )


def network_of(given: object, name: str) -> nn.Module:
    """The network that is given, out of what ``torch.compile`` or ``DataParallel`` has put around it.

    Raises:
        ConfigError: it is none, or has a state that checkpoints do not hold.
    """
    if not isinstance(given, nn.Module):
        raise ConfigError(f"the {name} is a torch.nn.Module, not a {type(given).__name__}.")
    network = unwrapped(given)
    if network is not given:
        say(f"the {name} is taken without the {type(given).__name__} around it.")
    check_tensors_alone(network, f"the {name}", "checkpoints hold tensors alone")
    return network


def copy_of(teacher: nn.Module) -> nn.Module:
    """A teacher that is nobody else's: the given one may share modules with the student, and is not to be moved."""
    try:
        return copied(teacher)
    except Exception as error:  # what a forward pass has left in it, say
        raise ConfigError(f"the teacher cannot be copied: {first_line(error)}.") from error


def answer(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """What it answers to two images.

    Raises:
        ConfigError: it does not take them, or answers with something else than a tensor.
    """
    try:
        with undisturbed(network):
            outputs = network(moved(images[:2], network))
    except Exception as error:  # a network of somebody else's
        raise ConfigError(
            f"the {name} does not take images of {tuple(images.shape[1:])} from train: {first_line(error)}."
        ) from error
    if not isinstance(outputs, Tensor):
        raise ConfigError(
            f"the {name} answers with a {type(outputs).__name__}; wrap it in a module that gives one tensor."
        )
    return outputs.cpu()


def task_of(
    batches: tuple[OwnBatches, OwnBatches],
    student: nn.Module,
    outputs: Tensor,
    loss: Loss | None,
    metric: tuple[str | Metric, Judge] | None,
    recipe: Recipe,
) -> LoaderTask:
    """The user's data, loss and metric, tried on two images of each set.

    Args:
        outputs: of the student, to a few images.
    """
    if loss is not None and recipe.label_smoothing:
        raise ConfigError("label_smoothing belongs to cross-entropy; leave it out beside a loss of your own.")
    recipe.check_sized(sized=is_sized(batches[0]))
    classes = outputs.shape[1] if outputs.dim() > 1 else 1
    judged, judge = (usual_metric(batches[1].first()[1], outputs), None) if metric is None else _own_metric(metric)
    if metric is not None and judged.key in RESERVED:
        raise ConfigError(f"a result has a '{judged.key}' already; give your metric another name.")
    train, val = batches
    task = LoaderTask(train, val) if loss is None else LossTask(train, loss, val)
    task.num_classes, task.metric, task.judge = classes, judged, judge
    for one in batches:
        _try(task, student, one)
    return task


def _own_metric(metric: object) -> tuple[Metric, Judge]:
    """A user's; one that has a name alone is the better the higher it is."""
    match metric:
        case (Metric() | str() as named, judge) if callable(judge):
            return named if isinstance(named, Metric) else Metric(named, is_share=False), judge
    raise ConfigError(
        "metric is a pair of a name (or Metric) and a function of outputs and labels, as in metric=('error', my_error)."
    )


def _try(task: LoaderTask, student: nn.Module, batches: OwnBatches) -> None:
    """Raise ConfigError unless loss and figures can be computed on ``batches``."""
    images, labels = batches.first()
    if task.metric == ACCURACY and not labels.is_floating_point() and labels.max() >= task.num_classes:
        raise ConfigError(
            f"{batches.name} has a label {int(labels.max())}, and the student tells {task.num_classes} classes apart, "
            "0 the first; give it a head of as many classes as there are."
        )
    device = training_device()  # where the user's functions will meet the outputs
    outputs, labels = answer(student, "student", images).to(device), labels[:2].to(device)
    try:
        task.criterion(outputs.float(), labels)
        if batches is task.val:
            task.figures(outputs.float(), labels)
    except DataError:
        raise
    except Exception as error:  # a function of somebody else's
        raise ConfigError(
            f"loss or metric cannot be had of outputs {tuple(outputs.shape)} and labels {tuple(labels.shape)} of "
            f"{batches.name}: {first_line(error)}."
        ) from error


def points_of(
    student: nn.Module,
    teacher: nn.Module | None,
    example: Tensor,
    outputs: Tensor,
    named: Sequence[str] | None,
    recipe: Recipe,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where activations are compared, and where they are matched."""
    if not recipe.imitates:
        return (), ()
    if teacher is None:
        weights = {name: getattr(recipe, name) for name in TERMS if getattr(recipe, name)}
        shown = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        unset = ", ".join(f"{name}=0" for name in weights)
        raise ConfigError(f"there is nobody to imitate ({shown}); give a teacher, or set {unset}.")
    answered = answer(teacher, "teacher", example)
    if recipe.kd and answered.shape[1:] != outputs.shape[1:]:
        raise ConfigError(
            f"logits are compared one by one; the teacher has {tuple(answered.shape[1:])} of them and the student "
            f"{tuple(outputs.shape[1:])}: set kd=0."
        )
    if not (recipe.beta or recipe.features):
        return (), ()
    of_its_space = getattr(student, "attention_points", None)
    points = shared_points(student, teacher, example, of_its_space) if named is None else tuple(dict.fromkeys(named))
    if named is not None and recipe.beta:
        attention_distances(_maps(student, points, example), _maps(teacher, points, example), recipe.attention)
    return points, equal_points(student, teacher, points, example) if recipe.features else ()


def _maps(network: nn.Module, points: Sequence[str], example: Tensor) -> list[Any]:
    """What it gives at ``points``, tensors on the CPU."""
    with captured(network, points) as seen, undisturbed(network):
        network(moved(example, network))
    given: list[Any] = list(seen.values())
    return [one.cpu() if isinstance(one, Tensor) else one for one in given]


def structure_digest(network: nn.Module) -> str:
    """Sixteen hexadecimal digits of the kinds of its modules and of the names and shapes of its tensors."""
    modules = [type(module).__name__ for module in network.modules()]
    tensors = [(name, tuple(value.shape)) for name, value in network.state_dict().items()]
    return hashlib.sha256(json.dumps([modules, tensors]).encode()).hexdigest()[:16]


def first_batch_digest(val: OwnBatches) -> str | None:
    """Sixteen hexadecimal digits that name the first batch to be judged on; None where it is another every time."""
    first, again = fingerprint(val.first()), fingerprint(val.first())
    return first if first == again else None


@contextmanager
def left_alone(*batches: OwnBatches) -> Iterator[None]:
    """Give a user the generators back, global and DataLoaders' own: training sets them for each epoch."""
    owners = [owner for one in batches for owner in drawing(one.batches)]
    before = [owner.generator for owner in owners]
    try:
        with undrawn(range(torch.cuda.device_count())):
            yield
    finally:
        for owner, generator in zip(owners, before, strict=True):
            owner.generator = generator
