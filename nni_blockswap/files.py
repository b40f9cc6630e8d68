"""Files that are never seen half-written: content goes to a temporary neighbour that then takes the name."""

import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from nni_blockswap.errors import ConfigError, StateError, first_line

LOCK = ".lock"
"""In a folder that one process at a time writes to."""

AT_ONCE, FOREVER = 0.1, -1.0
"""Seconds to wait for a lock: as good as none, and as many as it takes."""


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object], mode: int = 0o666) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    Its mode is ``mode`` less what the umask takes. Missing folders are made. On any error ``path`` stays as it was, and
    no temporary file is left.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes had begun to write to ``path``; nobody may be writing there now."""
    for temporary in path.parent.glob(f".{path.name}.*"):
        temporary.unlink(missing_ok=True)


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file's content; ``target`` is never seen half-written."""
    with source.open("rb") as content:
        write_atomically(target, lambda stream: shutil.copyfileobj(content, stream))


@contextmanager
def locked(
    path: Path, patience: float = FOREVER, otherwise: str = "", waiting: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold the lock ``path``, its folder made, for one at a time.

    It is the operating system's: it falls with the process.

    Args:
        patience: seconds to wait for whoever holds it.
        otherwise: what to say where that took too long.
        waiting: called before the wait, where somebody does hold it.

    Raises:
        StateError: somebody else holds it, or the disk has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=AT_ONCE)
        except Timeout:
            waiting()
            lock.acquire(timeout=patience)
    except Timeout:
        raise StateError(otherwise) from None
    except NotImplementedError as error:
        raise StateError(
            f"the disk of '{path.parent}' has no locks (flock); choose a folder on another disk."
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically, indented, in the order of the keys."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def expanded(path: str | Path) -> Path:
    """``path``, its ~ replaced by a home. Raises ConfigError where nobody has that name, or no path is written so."""
    try:
        found = Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"'{path}' is no path on this machine ({first_line(error)}); write it out.") from error
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} is no path: it has a NUL; remove it.")
    return found


def check_archive(path: str | Path) -> None:
    """Raise ValueError where a part of a ZIP archive, as torch.save writes one, is not what its checksum says.

    Torch itself does not look when it reads one. Any other kind of file passes.
    """
    with Path(path).open("rb") as content:
        begins_as_one = content.read(4) == b"PK\x03\x04"
    if not begins_as_one and not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except Exception as error:  # zipfile raises of all kinds
        raise ValueError(first_line(error)) from error
    if changed is not None:
        raise ValueError(f"'{changed}' has changed")


def read_json(path: str | Path) -> Any:
    """Read JSON; OSError and ValueError are the caller's to explain."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
