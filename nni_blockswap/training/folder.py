"""A run's folder: whose it is, that nobody else writes there, and when it is free again."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_blockswap.errors import BlockSwapError, StateError
from nni_blockswap.files import FOREVER, copy_atomically, locked, read_json, write_json
from nni_blockswap.results.trial import EPOCHS, EXTENDED, GIVEN, RUN, SETTINGS, WEIGHTS
from nni_blockswap.training import checkpoints
from nni_blockswap.training.checkpoints import BEST, LAST
from nni_blockswap.training.nni_link import is_first_process, under_nni
from nni_blockswap.training.program import say

LOCK = "run.lock"

PATIENCE = 10.0
"""Seconds to wait for a folder: processes that read images outlive a killed run by about five."""


@dataclass(frozen=True)
class Run:
    """A run that has its folder to itself.

    Attributes:
        name: stands in its checkpoints, too, so that another run's are told apart.
        began_with: how many epochs it was first meant to have.
    """

    name: str
    began_with: int


@contextmanager
def occupied(out: Path, settings: Mapping[str, Any], assumed: Mapping[str, Any]) -> Iterator[Run]:
    """Hold ``out`` for a run with ``settings``; give it up again where the run ends in an error and left nothing there.

    A lock is the operating system's, so it falls with the process that holds it. Under NNI a second process waits for
    the first to end, elsewhere it is refused.

    Args:
        settings: what makes the run the one that it is. Its ``epochs`` alone may grow.
        assumed: what a folder means that says nothing of a setting, as it is older than that.

    Raises:
        StateError: another run's folder, with which this one would be mixed; or that cannot be told; or it is in use.
    """
    if not is_first_process():  # the first one holds it
        yield _run_of(settings_in(out))
        return
    taken = f"another process is training in '{out}'"
    refused = f"{taken}; wait until it has ended, or give this one a folder of its own."
    patience = FOREVER if under_nni() else PATIENCE
    with locked(out / LOCK, patience, refused, lambda: say(f"{taken}; waiting for it.")):
        kept = _claimed(out, settings, assumed)
        write_json(out / SETTINGS, kept)
        try:
            yield _run_of(kept)
        except BaseException:
            if not any((out / name).exists() for name in (LAST, BEST, WEIGHTS)):
                (out / SETTINGS).unlink(missing_ok=True)
            raise


def take_over(
    out: Path, parameters: Mapping[str, Any], settings: Mapping[str, Any], assumed: Mapping[str, Any]
) -> None:
    """Let a trial go on from the last whole epoch of one of the same student that was killed, in a folder beside it.

    Args:
        out: the trial's folder; where a run has begun there already, that one goes on.
        parameters: what NNI gave the trial.
        settings, assumed: of its run, as ``occupied`` takes them. One with others, as of a library that has learned
            more since, is left alone.
    """
    if (out / SETTINGS).exists():
        return
    left = [path.parent for path in out.parent.glob(f"*/{GIVEN}") if (path.parent / LAST).exists()]
    for folder in sorted(left, key=lambda folder: (folder / LAST).stat().st_mtime, reverse=True):
        with suppress(BlockSwapError, OSError, ValueError):
            if folder == out or read_json(folder / GIVEN) != parameters:
                continue
            if _others({**assumed, **settings_in(folder)}, settings):
                continue
            checkpoints.read(folder / LAST)
            for path in (folder / SETTINGS, folder / LAST, folder / BEST):  # the first says whose the others are
                if path.exists():
                    copy_atomically(path, out / path.name)
            say(f"going on with what the killed trial {folder.name} of this student has done.")
            return


def settings_in(out: Path) -> dict[str, Any]:
    """What the run in ``out`` was started with. Raises StateError where that cannot be told."""
    try:
        found = read_json(out / SETTINGS)
        if not (isinstance(found, dict) and _are_settings(found)):
            raise ValueError("these are no settings")
    except (ValueError, RecursionError) as error:
        raise StateError(
            f"'{out / SETTINGS}' is damaged ({error}), so that nobody can tell whose run '{out}' holds; "
            "give this one a folder of its own."
        ) from error
    return found


def _are_settings(found: dict[str, Any]) -> bool:
    epochs = [found.get(EPOCHS, 1), *(found[EXTENDED] if isinstance(found.get(EXTENDED), list) else [])]
    lists = isinstance(found.get(EXTENDED, []), list)
    return lists and isinstance(found.get(RUN, ""), str) and all(type(count) is int for count in epochs)


def _claimed(out: Path, settings: Mapping[str, Any], assumed: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder's settings are from now on."""
    if not (out / SETTINGS).exists():
        return {RUN: uuid.uuid4().hex, **settings}
    kept = {**assumed, **settings_in(out)}
    other = _others(kept, settings)
    if other:
        raise StateError(f"'{out}' holds a run with another {', '.join(other)}; give this one a folder of its own.")
    before, now = kept.get(EPOCHS), settings[EPOCHS]
    if before is None or before == now:
        return {RUN: uuid.uuid4().hex, **kept, **settings}
    if now < before:
        raise StateError(
            f"'{out}' holds a run of {before} epochs, which can be made longer and not shorter; give this one of {now} "
            "a folder of its own."
        )
    say(
        f"the run of {before} epochs in '{out}' becomes one of {now}, and goes on under the schedule of {now} epochs; "
        "to have that from the first epoch on, start anew in another folder."
    )
    return {RUN: uuid.uuid4().hex, **kept, **settings, EXTENDED: [*kept.get(EXTENDED, []), before]}


def _others(kept: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The settings that are others than those that were kept, but for what may change in a run."""
    ours = {RUN, EPOCHS, EXTENDED}
    return [name for name in {**kept, **settings} if name not in ours and kept.get(name) != settings.get(name)]


def _run_of(settings: Mapping[str, Any]) -> Run:
    return Run(settings[RUN], (settings.get(EXTENDED) or [settings[EPOCHS]])[0])
