"""Builds a library: candidates of all blocks learn side by side on one forward pass of the teacher a step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import nni_blockswap
from nni_blockswap.architecture import complete_args, cost_table
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.files import locked
from nni_blockswap.library import workers
from nni_blockswap.library.bench import Bench
from nni_blockswap.library.lessons import Lessons
from nni_blockswap.library.library import Library, read_about, write_about
from nni_blockswap.library.school import OnProgress, School
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.library.teacher import load_teacher
from nni_blockswap.library.workers import Share, shares
from nni_blockswap.scoring.machine import resolve_device
from nni_blockswap.scoring.scorer import check_fit
from nni_blockswap.tasks import Task, make_task

PATIENCE = 10.0
"""Seconds to wait for another process in the same folder: one that was killed takes a while to end."""

STARTS = "originals' factors, last convolution fitted"
"""How candidates begin; a library that began otherwise is another one."""


NOT_OF_IT = ("steps", "blocks", "blocks_at_once", "processes", "data_root")
"""Settings that make no other library."""


def build(
    settings: LibrarySettings,
    out: str | Path,
    on_progress: OnProgress = lambda progress: None,
) -> Library:
    """Teach all candidates of all blocks, and keep what they learned in ``out``.

    A second call goes on where a killed one stopped: the same library comes out, bit for bit on a CPU. With more steps
    it teaches those on, from their weights, that still gain by it.

    Raises:
        BlockSwapError: settings that do not fit the space or the data; another library in ``out``, or somebody else who
            builds it.
    """
    folder, task = Path(out), make_task(settings.data, settings.data_root, **settings.data_options)
    example = task.minibatch(1, seed=0, augment=False)
    check_fit(settings.space, complete_args(settings.space, settings.space_args), task, example)
    taken = f"another process builds the library in '{folder}'; wait for its end, or choose another folder."
    with locked(folder, PATIENCE, taken):
        return _build(settings, folder, task, on_progress)


def _build(settings: LibrarySettings, folder: Path, task: Task, on_progress: OnProgress) -> Library:
    lessons = Lessons(task, settings.batch_size, settings.held_out, settings.seed)
    teacher, digest = load_teacher(settings.space, settings.space_args, settings.teacher)
    first = next(lessons.measured())
    _claim(folder, settings, digest, task.fingerprint(first))
    table = cost_table(settings.space, settings.space_args)
    here = partial(_teach, teacher, task, lessons, settings, folder)
    there = partial(teach_share, settings, folder)
    workers.teach(here, there, shares(settings, resolve_device(settings.device), table), on_progress)
    library = Library.load(folder)
    library.write_errors(table)
    return library


def teach_share(settings: LibrarySettings, folder: Path, share: Share, on_progress: OnProgress) -> None:
    """Teach some of the blocks, in a process that knows nothing yet."""
    task = make_task(settings.data, settings.data_root, **settings.data_options)
    lessons = Lessons(task, settings.batch_size, settings.held_out, settings.seed)
    teacher, _ = load_teacher(settings.space, settings.space_args, settings.teacher)
    _teach(teacher, task, lessons, settings, folder, share, on_progress)


def _teach(
    teacher: BlockSpace,
    task: Task,
    lessons: Lessons,
    settings: LibrarySettings,
    folder: Path,
    share: Share,
    on_progress: OnProgress,
) -> None:
    device = torch.device(share.device)
    teacher.to(device, memory_format=torch.channels_last)
    benches = [Bench(block, settings, folder, device) for block in teacher.blocks() if block.label in share.labels]
    board = folder / "tensorboard" / share.name
    School(teacher, task, lessons, settings, device, board, on_progress).teach(benches)


def _claim(folder: Path, settings: LibrarySettings, teacher: str, data: str) -> None:
    """Write what the library is, unless it is there already. Raises StateError where another one is."""
    labels = cost_table(settings.space, settings.space_args).labels
    named = {name: value for name, value in asdict(settings).items() if name not in NOT_OF_IT}
    identity = {
        **named,
        "space_args": complete_args(settings.space, settings.space_args),
        "data_options": dict(settings.data_options),
        "labels": list(labels),
        "teacher_digest": teacher,
        "data_fingerprint": data,
        "starts": STARTS,
    }
    identity["versions"] = {"nni_blockswap": nni_blockswap.__version__, "torch": torch.__version__}
    before = read_about(folder)
    if before is not None:
        loose = ("teacher", "device", "versions")  # a teacher is known by its digest, not by its path
        changed = [f"{name} was {before.get(name)}, now {value}" for name, value in identity.items()
                   if name not in loose and before.get(name) != value]  # fmt: skip
        if changed:
            raise StateError(
                f"'{folder}' holds another library ({', '.join(changed)}); choose another folder for this one."
            )
    write_about(folder, {**identity, "steps": _wanted(settings, labels, before)})


def _wanted(settings: LibrarySettings, labels: Sequence[str], before: Mapping[str, Any] | None) -> dict[str, int]:
    """How many steps each block is to have made. Raises ConfigError where those named cannot be taught alone."""
    asked = labels if settings.blocks is None else settings.blocks
    for label in asked:
        if label not in labels:
            raise ConfigError(f"'{label}' is no block of the library; its blocks are {', '.join(labels)}.")
    if before is None and settings.blocks is not None:
        raise ConfigError("blocks says which of a library's are given more steps; build the library first, without.")
    known = dict.fromkeys(labels, 0) if before is None else before["steps"]
    return {label: max(known[label], settings.steps if label in asked else 0) for label in labels}
