"""A library that a search needs and nobody has built: the original is trained first, then every candidate is taught."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.files import copy_atomically, expanded, read_json, write_json
from nni_blockswap.library.building import build
from nni_blockswap.library.school import Progress
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.library.teacher import original_of
from nni_blockswap.searching import SearchSettings
from nni_blockswap.tasks import make_task
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.sources import is_file
from nni_blockswap.training.teachers import TeacherPlan, trained_teacher

TEACHER = "teacher.pt"
"""In a library's folder: the weights of the teacher that was trained for it."""

RECIPE = "teacher.json"
"""Beside them: the recipe by which it was."""

OnProgress = Callable[[str, Progress], None]
"""Given what is going on, "teacher" or "library", and how far it is: steps, or steps of blocks."""


@dataclass(frozen=True)
class LibraryPlan:
    """What to build, where, and how its teacher is trained; ``recipe`` is None where one is given."""

    folder: Path
    settings: LibrarySettings
    recipe: Recipe | None

    @classmethod
    def read(cls, arguments: Mapping[str, Any], search: SearchSettings, base: Path) -> "LibraryPlan":
        """A plan from the tuner's argument ``library``.

        Args:
            arguments: ``folder``; ``teacher``, where weights come from as ``--teacher`` says it, or the fields of a
                ``Recipe`` by which the original is trained; and maybe fields of ``LibrarySettings`` that the search
                does not have.
            search: whose space and data it is for; its ``library`` is the folder.
            base: what a relative path of a teacher is relative to.

        Raises:
            ConfigError: an argument is unknown, missing or out of its range.
        """
        of_search = {"space", "space_args", "data", "data_root", "data_options"}
        known = {one.name for one in fields(LibrarySettings)} - of_search
        for name in arguments.keys() - known - {"folder"}:
            raise ConfigError(f"library has no '{name}'; it has folder, {', '.join(sorted(known))}.")
        teacher, own = arguments.get("teacher"), {name: arguments[name] for name in arguments.keys() & known}
        if search.library is None or not isinstance(teacher, str | Mapping):
            raise ConfigError(
                "library has a folder, and a teacher: a checkpoint, or the recipe that trains one, as {epochs: 100}."
            )
        folder = Path(search.library)
        recipe = None if isinstance(teacher, str) else _recipe(teacher)
        own["teacher"] = str(folder / TEACHER) if recipe else _placed(str(teacher), base)
        settings = LibrarySettings(**{name: getattr(search, name) for name in of_search}, **own)
        return cls(folder, settings, recipe)


def _placed(source: str, base: Path) -> str:
    return str(base / expanded(source)) if is_file(source) else source


def _recipe(teacher: Mapping[str, Any]) -> Recipe:
    for name in teacher.keys() - {one.name for one in fields(Recipe)}:
        raise ConfigError(f"library.teacher has no '{name}'; it is a recipe, as {{epochs: 100, lr: 0.1}}.")
    return Recipe(**{"beta": 0.0, **teacher})


def prepare(plan: LibraryPlan, on_progress: OnProgress = lambda what, progress: None) -> None:
    """Train the teacher and build the library, as far as they are not there yet.

    A second call goes on where a killed one stopped.

    Raises:
        BlockSwapError: what does not fit space or data; another library in the folder, or a teacher of another recipe.
    """
    if plan.recipe is not None:
        if (plan.folder / TEACHER).exists():
            _check_recipe(plan.folder, plan.recipe)
        else:
            _train(plan, plan.recipe, on_progress)
    build(plan.settings, plan.folder, lambda progress: on_progress("library", progress))


def _train(plan: LibraryPlan, recipe: Recipe, on_progress: OnProgress) -> None:
    settings = plan.settings
    task = make_task(settings.data, settings.data_root, **settings.data_options)
    original = original_of(settings.space, settings.space_args)
    where = TeacherPlan(None, plan.folder / "teacher", recipe)
    kept = trained_teacher(original, task, settings.data_options, where, Machine(), [_Steps(on_progress)])
    write_json(plan.folder / RECIPE, recipe.settings())
    copy_atomically(kept, plan.folder / TEACHER)


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    """Raise StateError where the teacher in ``folder`` is known to have been trained by another recipe."""
    path = folder / RECIPE
    if not path.exists():
        return
    try:
        before = {**Recipe().settings(), **read_json(path)}
    except (ValueError, TypeError) as error:
        raise StateError(f"'{path}' is damaged; delete it to take the teacher beside it as it is.") from error
    changed = [f"{name} was {before[name]}, now {value}" for name, value in recipe.settings().items()
               if before[name] != value]  # fmt: skip
    if changed:
        raise StateError(
            f"the teacher in '{folder}' was trained by another recipe ({', '.join(changed)}); choose another "
            "folder for the library of this one."
        )


class _Steps(Callback):
    """Tells after each step how far a training is; whoever listens may stop it by an exception."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress, self._begun, self._first = on_progress, 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where this process goes on."""
        self._begun, self._first = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        """Steps done and wanted, and an estimate of the seconds left, as soon as there is a step to judge by."""
        done, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        if done == self._first or total < done:  # a part of a step; batches of which nobody knows how many there are
            return
        a_step = (time.monotonic() - self._begun) / (done - self._first)
        self._on_progress("teacher", Progress(done, total, a_step * (total - done)))
