"""Builds a library: candidates of all blocks learn side by side on one forward pass of the teacher a step."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import nni_blockswap
from nni_blockswap.blocks.network import NetworkSpace
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.conversation import unheard
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import ConfigError, StateError, first_line
from nni_blockswap.files import LOCK, locked
from nni_blockswap.library import workers
from nni_blockswap.library.bench import Bench
from nni_blockswap.library.lessons import Lessons
from nni_blockswap.library.library import ABOUT, Library, read_about, write_about
from nni_blockswap.library.school import OnProgress, School
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.library.teacher import load_teacher
from nni_blockswap.library.workers import Share, shares, threads_each
from nni_blockswap.networks import channels_last
from nni_blockswap.scoring.machine import resolve_device
from nni_blockswap.scoring.scorer import check_fit
from nni_blockswap.spaces import complete_args, load_space, table_of_blocks
from nni_blockswap.tasks import Task, make_task

PATIENCE = 10.0
"""Seconds to wait for another process in the same folder: one that was killed takes a while to end."""

STARTS = "originals' factors, last convolution fitted"
"""How candidates begin; a library that began otherwise is another one."""

NARROWED = f"{STARTS}, MB and the network's own branches narrowed"
"""How they begin where MB is offered, or W in a network of one's own: once with fresh weights, or otherwise built."""

NOT_OF_IT = ("steps", "blocks", "blocks_at_once", "processes", "data_root")
"""Settings that make no other library."""


def build(settings: LibrarySettings, out: str | Path, on_progress: OnProgress = unheard) -> Library:
    """Teach all candidates of all blocks, and keep what they learned in ``out``.

    A second call goes on where a killed one stopped: the same library comes out, bit for bit on a CPU. With more steps
    it teaches those on, from their weights, that still gain by it.

    Raises:
        BlockSwapError: settings that do not fit the space or the data; another library in ``out``, or somebody else who
            builds it.
    """
    table = table_of_blocks(settings.space, settings.space_args)
    folder, task = Path(out), make_task(settings.data, settings.data_root, **settings.data_options)
    example = task.minibatch(1, seed=0, augment=False)
    check_fit(settings.space, complete_args(settings.space, settings.space_args), task, example)
    taken = f"another process builds the library in '{folder}'; wait for its end, or choose another folder."
    with locked(folder / LOCK, PATIENCE, taken):
        return _build(settings, table, folder, task, on_progress)


def _build(settings: LibrarySettings, table: Table, folder: Path, task: Task, on_progress: OnProgress) -> Library:
    lessons = Lessons(task, settings.batch_size, settings.held_out, settings.seed)
    teacher, digest = load_teacher(settings.space, settings.space_args, settings.teacher)
    seen = task.fingerprint(next(lessons.measured()))
    about = _claim(folder, settings, table, digest, seen)
    wanted = _wanted(settings, table.labels, about["steps"])
    write_about(folder, about)
    here = partial(_teach, teacher, task, lessons, settings, folder)
    there = partial(teach_share, settings, folder, (digest, seen))
    device = resolve_device(settings.device)
    workers.teach(here, there, shares(settings, device, table), threads_each(settings, device), on_progress)
    write_about(folder, {**about, "steps": wanted})
    library = Library.load(folder)
    library.write_errors(table)
    return library


def teach_share(
    settings: LibrarySettings, folder: Path, expected: tuple[str, str], share: Share, on_progress: OnProgress
) -> None:
    """Teach some of the blocks, in a process that knows nothing yet.

    Raises:
        StateError: teacher and first minibatch are not the ``expected`` ones, by digest and fingerprint.
    """
    task = make_task(settings.data, settings.data_root, **settings.data_options)
    lessons = Lessons(task, settings.batch_size, settings.held_out, settings.seed)
    teacher, digest = load_teacher(settings.space, settings.space_args, settings.teacher)
    if (digest, task.fingerprint(next(lessons.measured()))) != expected:
        raise StateError(
            "a process that was to teach some of the blocks got another teacher, or other images, than this one: "
            "something draws them at random; give a checkpoint, seed the data, or take one process."
        )
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
    channels_last(teacher.to(device))
    benches = [Bench(block, settings, folder, device) for block in teacher.blocks() if block.label in share.labels]
    board = folder / "tensorboard" / share.name
    School(teacher, task, lessons, settings, device, board, on_progress).teach(benches)


def _claim(folder: Path, settings: LibrarySettings, table: Table, teacher: str, data: str) -> dict[str, Any]:
    """What the library is, and how many steps its blocks had when it was whole. Raises StateError where another is."""
    named = {name: value for name, value in asdict(settings).items() if name not in NOT_OF_IT}
    identity = {
        **named,
        "space_args": complete_args(settings.space, settings.space_args),
        "data_options": _as_read_back(settings.data_options),
        "labels": list(table.labels),
        "teacher_digest": teacher,
        "data_fingerprint": data,
        "starts": _starts(settings.space, table),
        "versions": {"nni_blockswap": nni_blockswap.__version__, "torch": torch.__version__},
    }
    before = read_about(folder)
    if before is None and any(folder.glob("*.safetensors")):
        raise StateError(
            f"'{folder}' holds blocks of a library that nobody knows, as {ABOUT} is missing; choose another folder, or "
            "delete this one."
        )
    if before is not None:
        loose = ("teacher", "device", "versions")  # a teacher is known by its digest, not by its path
        changed = [f"{name} was {before.get(name)}, now {value}" for name, value in identity.items()
                   if name not in loose and before.get(name) != value]  # fmt: skip
        if changed:
            raise StateError(
                f"'{folder}' holds another library ({', '.join(changed)}); choose another folder for this one."
            )
    return {**identity, "steps": dict.fromkeys(table.labels, 0) if before is None else before["steps"]}


def _as_read_back(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a data set as library.json keeps them. Raises ConfigError where it cannot."""
    try:
        return dict(json.loads(json.dumps(options)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a library keeps its data_options, which are numbers, texts, lists and mappings: {first_line(error)}."
        ) from error


def _starts(space: str, table: Table) -> str:
    kind: Any = load_space(space)
    narrowed = ("MB(", "W(") if issubclass(kind, NetworkSpace) else ("MB(",)
    return NARROWED if any(name.startswith(narrowed) for names in table.candidates for name in names) else STARTS


def _wanted(settings: LibrarySettings, labels: Sequence[str], known: Mapping[str, int]) -> dict[str, int]:
    """How many steps each block is to have made. Raises ConfigError where those named cannot be taught alone."""
    asked = labels if settings.blocks is None else settings.blocks
    for label in asked:
        if label not in labels:
            raise ConfigError(f"'{label}' is no block of the library; its blocks are {', '.join(labels)}.")
    if settings.blocks is not None and not all(known.values()):
        raise ConfigError("blocks says which of a library's are given more steps; build the library first, without.")
    return {label: max(known[label], settings.steps if label in asked else 0) for label in labels}
