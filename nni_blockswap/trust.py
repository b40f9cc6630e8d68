"""Whose code a file may have run: an architecture names modules, and importing one runs what is in it.

What a user writes, on a command line, in a call or in an experiment's config, is trusted. A file may be anybody's.
"""

import argparse
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from nni_blockswap.errors import BlockSwapError

IMPORTED = ("nni_blockswap", "search_spaces", "torchvision", "timm")
"""Packages whose modules a file may have imported."""

CALLED = ("nni_blockswap.blocks", "search_spaces", "torchvision.models", "timm.models")
"""Modules whose functions and classes a file may have called: what is there makes networks, and does no harm."""

_allowed: ContextVar[tuple[str, ...] | None] = ContextVar("allowed", default=None)
_always: list[str] = []


def allow(packages: Sequence[str]) -> None:
    """Let files that are read in this process name these packages, as ``--allow`` says."""
    _always.extend(packages)


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Which code the files of architectures and libraries may have run."""
    parser.add_argument(
        "--allow",
        nargs="+",
        action="extend",
        default=[],
        metavar="PACKAGE",
        help="that the file of an architecture or a library may name, and run the code of; beside this project's, "
        "torchvision and timm",
    )


@contextmanager
def distrust(allowed: Sequence[str]) -> Iterator[None]:
    """Let only modules of some packages be imported: those above, the user's own, and those that are ``allowed``.

    The user's own are those that this process has imported already, apart from Python and what is installed.
    """
    before = _allowed.set((*allowed, *_always))
    try:
        yield
    finally:
        _allowed.reset(before)


def packages_in(words: object) -> list[str]:
    """Packages of the import paths in a user's own words: text, or lists and mappings of it.

    Example:
        >>> packages_in({"space": "mine.spaces:Space", "space_args": {"extra": ["theirs:MB(4)", "G(2)"]}})
        ['mine', 'theirs']
    """
    if isinstance(words, Mapping):
        parts: Iterable[object] = words.values()
    elif isinstance(words, list | tuple):
        parts = words
    else:
        found = re.match(r"([^\W\d]\w*)(\.\w+)*:[^\W\d]", words) if isinstance(words, str) else None
        return [found[1]] if found else []
    return list(dict.fromkeys(package for part in parts for package in packages_in(part)))


def check_import(module: str, error: type[BlockSwapError]) -> None:
    """Raise ``error`` where a file names ``module`` and may not."""
    _check(module, IMPORTED, error)


def check_call(found: object, error: type[BlockSwapError]) -> None:
    """Raise ``error`` where a file names ``found`` and may not have it called, as os.system in a module with os."""
    module = getattr(found, "__module__", None)
    if isinstance(module, str):
        _check(module, CALLED, error)


def _check(module: str, packages: Sequence[str], error: type[BlockSwapError]) -> None:
    allowed = _allowed.get()
    if allowed is None or _is_of(module, (*packages, *allowed)) or _is_own(module):
        return
    package = module.partition(".")[0]
    raise error(
        f"it names '{module}', and a file may not have the code of any package run; where you trust it, say so: "
        f"--allow {package} on the command line, Architecture.load(path, allow=['{package}']) in Python."
    )


def _is_of(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _is_own(module: str) -> bool:
    """Whether it is the user's: imported already, and neither Python's nor this project's nor installed."""
    package = module.partition(".")[0]
    if package not in sys.modules or package in ("nni_blockswap", "trial"):
        return False
    if package == "__main__":
        return True
    origins = [getattr(sys.modules[package], "__file__", None), *getattr(sys.modules[package], "__path__", ())]
    places = [Path(origin).resolve() for origin in origins if origin]
    paths = sysconfig.get_paths()
    libraries = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return bool(places) and not any(place.is_relative_to(library) for place in places for library in libraries)
