"""A run's folder: whose it is, and when it is free again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nni_blockswap.errors import StateError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.training import checkpoints

SETTINGS = "settings.json"

_claimed: set[Path] = set()
"""Folders whose settings this process has written."""


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Write down whose folder ``out`` is.

    Raises:
        StateError: another run's, with which this one would be mixed, or that cannot be told.
    """
    if (out / SETTINGS).exists():
        kept = settings_in(out)
        other = [name for name in {**kept, **settings} if kept.get(name) != settings.get(name)]
        if other:
            raise StateError(f"'{out}' holds a run with another {', '.join(other)}; give this one a folder of its own.")
    write_json(out / SETTINGS, dict(settings))
    _claimed.add(out)


@contextmanager
def released_on_failure(out: Path) -> Iterator[None]:
    """Give ``out`` up again where a run ends in an error before there is anything of it."""
    try:
        yield
    except BaseException:
        if out in _claimed and not any((out / name).exists() for name in (checkpoints.LAST, checkpoints.WEIGHTS)):
            (out / SETTINGS).unlink(missing_ok=True)
        raise


def settings_in(out: Path) -> dict[str, Any]:
    """What the run in ``out`` was started with. Raises StateError where that cannot be told."""
    try:
        return dict(read_json(out / SETTINGS))
    except (ValueError, TypeError) as error:
        raise StateError(
            f"'{out / SETTINGS}' is damaged ({error}), so that nobody can tell whose run '{out}' holds; "
            "give this one a folder of its own."
        ) from error
