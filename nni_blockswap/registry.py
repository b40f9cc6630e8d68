"""Things that users choose by name: this package's own, what others register, what an import path names."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Generic, TypeVar

from nni_blockswap.errors import BlockSwapError, ConfigError, first_line
from nni_blockswap.trust import check_call, check_import

T = TypeVar("T")


class Registry(Generic[T]):
    """Named things of one kind, each imported when it is first asked for.

    A name is one of this package's, one that somebody registered in this process, or "module:attribute", which every
    process can import: helper processes, NNI's dispatcher and its trials.

    Args:
        kind: what one of them is called, for messages.
        own: this package's, by name, as "module:attribute"; the first is the default.
        error: what is raised where there is none of a name.

    Example:
        >>> colours = Registry[str]("colour", {}, ConfigError)
        >>> colours.register("red", "#f00")
        '#f00'
        >>> colours["red"], colours["string:digits"], list(colours)
        ('#f00', '0123456789', ['red'])
    """

    def __init__(self, kind: str, own: Mapping[str, str], error: type[BlockSwapError] = ConfigError) -> None:
        self._kind, self._error = kind, error
        self._paths = dict(own)
        self._loaded: dict[str, T] = {}

    def register(self, name: str, thing: T) -> T:
        """Add ``thing`` under ``name``, in this process; a later one takes the place of an earlier one."""
        self._loaded[name] = thing
        return thing

    def __iter__(self) -> Iterator[str]:
        """All names but import paths."""
        return iter(dict.fromkeys([*self._paths, *self._loaded]))

    def __contains__(self, name: object) -> bool:
        return name in self._paths or name in self._loaded

    def is_everywhere(self, name: str) -> bool:
        """Whether other processes know it: this package's own, or an import path of a module that is not the script."""
        return name in self._paths or (":" in name and not name.startswith("__main__:"))

    def __getitem__(self, name: str) -> T:
        """The thing called ``name``. Raises the registry's error where there is none."""
        if name in self._loaded:
            return self._loaded[name]
        path = self._paths.get(name, name)
        if ":" not in path:
            raise self._error(
                f"there is no {self._kind} '{name}'; choose from {', '.join(self)}, or name one as module:attribute."
            )
        if name not in self._paths:
            chosen: T = load(path, self._kind, self._error)
            return chosen
        self._loaded[name] = _found(path, self._kind, self._error)
        return self._loaded[name]


def load(path: str, kind: str, error: type[BlockSwapError]) -> Any:
    """What "module:attribute" names. Raises ``error`` where there is none, or ``trust`` has to be asked for."""
    check_import(path.partition(":")[0], error)
    found = _found(path, kind, error)
    check_call(found, error)
    return found


def _found(path: str, kind: str, error: type[BlockSwapError]) -> Any:
    module, _, attribute = path.partition(":")
    found: Any = _imported(module, kind, error, path)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise error(f"the {kind} '{path}' cannot be imported: '{module}' has no '{attribute}'.")
        found = getattr(found, part)
    return found


def import_named(module: str, kind: str, error: type[BlockSwapError]) -> ModuleType:
    """A module. Raises ``error`` where it cannot be imported, for whatever reason, or a file names it and may not."""
    check_import(module, error)
    return _imported(module, kind, error, module)


def _imported(module: str, kind: str, error: type[BlockSwapError], name: str) -> ModuleType:
    try:
        return import_module(module)
    except (Exception, SystemExit) as cause:
        raise error(
            f"the {kind} '{name}' cannot be imported ({type(cause).__name__}: {first_line(cause)}); "
            f"start in the folder that holds '{module.split('.')[0]}', or put it on PYTHONPATH."
        ) from cause
