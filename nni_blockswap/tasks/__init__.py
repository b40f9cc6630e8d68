"""Tasks: a data set with its loss, metric and loaders. One row of the registry a data set."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast, get_type_hints

from nni_blockswap.errors import ConfigError, DataError
from nni_blockswap.metric import ACCURACY, Metric
from nni_blockswap.tasks.base import Batch, Task

__all__ = ["TASKS", "Batch", "Task", "make_task", "metric_of"]

TASKS = {
    "digits": "small_images:digits",
    "cifar10": "small_images:cifar10",
    "cifar100": "small_images:cifar100",
    "image-folder": "image_folder:image_folder",
    "imagenet": "image_folder:imagenet",
    "coco": "coco:coco",
}
"""Data sets by name, as "module:factory" of this package."""


def make_task(name: str, root: str | None = None, **options: Any) -> Task:
    """The task on data set ``name``, its files below ``root``.

    Raises:
        DataError: no such data set, or its files are not there.
        ConfigError: the data set has no such option, or cannot take its value.
    """
    if name not in TASKS:
        raise DataError(f"there is no data set '{name}'; choose from {', '.join(TASKS)}.")
    make = _factory(name)
    known = make.__annotations__.keys() - {"root", "return"}
    for option in options.keys() - known:
        raise ConfigError(
            f"the data set '{name}' has no option '{option}'; it has {', '.join(sorted(known)) or 'none'}."
        )
    try:
        return make(root, **options)
    except (TypeError, ValueError) as error:
        given = " ".join(f"{option}={value}" for option, value in options.items())
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"the data set '{name}' cannot take the options {given}: {reason}.") from error


def metric_of(name: str) -> Metric:
    """What networks are judged by on data set ``name``, whose files need not be there; accuracy where it is unknown."""
    if name not in TASKS:
        return ACCURACY
    made = get_type_hints(_factory(name))["return"]
    return cast(Metric, made.metric)


def _factory(name: str) -> Callable[..., Task]:
    module, factory = TASKS[name].split(":")
    return cast(Callable[..., Task], getattr(import_module(f"{__name__}.{module}"), factory))
