"""Tasks: a data set with its loss, metric and loaders; a file a kind of data."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, cast, get_type_hints

from nni_blockswap.errors import BlockSwapError, ConfigError, DataError, first_line
from nni_blockswap.metric import UNKNOWN, Metric
from nni_blockswap.registry import Registry
from nni_blockswap.tasks.base import Batch, Task
from nni_blockswap.tasks.data_module import ModuleTask, is_data_module

__all__ = ["TASKS", "Batch", "Task", "make_task", "metric_of", "usual"]

TASKS: Registry[Callable[..., Task]] = Registry(
    "data set",
    {
        "digits": f"{__name__}.small_images:digits",
        "cifar10": f"{__name__}.small_images:cifar10",
        "cifar100": f"{__name__}.small_images:cifar100",
        "image-folder": f"{__name__}.image_folder:image_folder",
        "imagenet": f"{__name__}.image_folder:imagenet",
        "coco": f"{__name__}.coco:coco",
    },
    DataError,
)
"""Functions that make them, from a folder and options."""


def make_task(name: str, root: str | None = None, /, **options: Any) -> Task:
    """The task on data set ``name``, its files below ``root``; of a LightningDataModule, options are its arguments.

    Raises:
        DataError: no such data set, or its files are not there.
        ConfigError: it is no function that returns a task, has no such option, or cannot take its value.
    """
    make = TASKS[name]
    if not callable(make):
        raise ConfigError(f"a data set is a function that returns a task, and '{name}' is a {type(make).__name__}.")
    if is_data_module(make):
        make = _of_module(name, make)
    known = inspect.signature(make).parameters.keys() - {"root"}
    for option in options.keys() - known:
        raise ConfigError(
            f"the data set '{name}' has no option '{option}'; it has {', '.join(sorted(known)) or 'none'}."
        )
    try:
        task = make(root, **options)
    except (BlockSwapError, OSError):
        raise
    except Exception as error:  # the function may be anybody's
        given = " ".join(f"{option}={value}" for option, value in options.items())[:200]
        raise ConfigError(f"the data set '{name}' cannot take the options {given}: {first_line(error)}.") from error
    if not hasattr(task, "minibatch"):
        raise ConfigError(
            f"a data set is a function that returns a task, and '{name}' returned a {type(task).__name__}; of batches, "
            "LoaderTask(train, val) makes one."
        )
    return task


def usual(name: str, option: str) -> Any:
    """What a data set takes where ``option`` is not given; None where it has no such option, or needs it."""
    found = inspect.signature(TASKS[name]).parameters.get(option)
    return None if found is None or found.default is found.empty else found.default


def _of_module(name: str, kind: Callable[..., Any]) -> Callable[..., Task]:
    """What makes the task on a LightningDataModule; it takes ``root`` where its class does."""

    @wraps(kind)
    def make(root: str | None, **arguments: Any) -> Task:
        if root is None:
            return cast(Task, ModuleTask(name, kind(**arguments)))
        if "root" not in inspect.signature(kind).parameters:
            raise ConfigError(f"the data module '{name}' takes no argument 'root' to give its folder to; leave it out.")
        return cast(Task, ModuleTask(name, kind(root=root, **arguments)))

    return make


def metric_of(name: str) -> Metric:
    """What networks are judged by on data set ``name``, whose files need not be there.

    A function says so by what it returns, as its annotation has it; ``UNKNOWN`` where somebody's own does not, or
    cannot be imported here.
    """
    try:
        make = TASKS[name]
        made = ModuleTask if is_data_module(make) else get_type_hints(make).get("return")
    except Exception:  # annotations may be anybody's, too
        return UNKNOWN
    return cast(Metric, getattr(made, "metric", UNKNOWN))
