"""A digest of a network that tells it from others: what it is made of, what it holds, and the code that it runs."""

import inspect
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn


def digest(network: nn.Module, *beside: Any) -> str:
    """Eight hexadecimal digits, the same in other processes of the same Python, on any device and in any mode.

    Networks that differ in a weight, a buffer, a public attribute, the code of a class or in what stands ``beside``
    them have others. Not looked at: functions outside its classes that it calls, what is inside other objects, and
    what a container holds beyond its first thousand.

    Args:
        network: any.
        beside: what else is to tell it from others, by its ``repr``.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> before = digest(network)
        >>> network.scale = 0.5
        >>> digest(network) == before
        False
    """
    kinds = dict.fromkeys(type(module) for module in network.modules())
    parts = [_spelled([type(module), _own(vars(module), "_")]) for module in network.modules()]
    parts += [_spelled(_own(vars(base), "__")) for kind in kinds for base in kind.__mro__ if base not in _MODULE]
    shown = re.sub(r" at 0x[0-9a-f]+", "", repr((network, beside)))
    found = zlib.crc32("\n".join((shown, *parts)).encode())
    for value in network.state_dict().values():
        found = _of_tensor(value, found) if isinstance(value, Tensor) else found
    return f"{found:08x}"


_MODULE = nn.Module.__mro__
_OF_ALL = vars(nn.Module()).keys()


def digest_of_function(function: Callable[..., Any]) -> str:
    """The same of what is called: a function with what it takes from around it, a module, an object by its class."""
    if isinstance(function, nn.Module):
        return digest(function)
    return f"{zlib.crc32(_spelled(function).encode()):08x}"


def digest_of_class(kind: type) -> str:
    """The same of the code and attributes of a class and of those that it derives from, but for this package's."""
    package = __name__.partition(".")[0]
    bases = [base for base in kind.__mro__[:-1] if base.__module__.partition(".")[0] != package]
    told = [
        [base, {name: value for name, value in vars(base).items() if name == "__init__" or not name.startswith("__")}]
        for base in bases
    ]
    return f"{zlib.crc32(_spelled(told).encode()):08x}"


def _own(attributes: Mapping[str, Any], private: str) -> dict[str, Any]:
    """What no other module has; private ones are caches, or a trainer's."""
    return {name: value for name, value in attributes.items() if name not in _OF_ALL and not name.startswith(private)}


def _spelled(value: Any, above: frozenset[int] = frozenset()) -> str:
    """A text that is the same in every process, without addresses and orders of sets; of an object its class.

    Of lists and mappings with more than ``MOST`` entries it has their length and the first of them; of such sets, which
    have no first, the length.

    Args:
        value: any.
        above: ids of what it stands in, which may stand in it again.
    """
    if id(value) in above:
        return "..."
    spelled = partial(_spelled, above=above | {id(value)})
    if isinstance(value, FunctionType | MethodType):
        function: Any = inspect.unwrap(value)
        return spelled([getattr(function, f"__{name}__", None) for name in _FUNCTION])
    if isinstance(value, CellType):  # what a function takes from the one that it stands in; functions there by name
        inner = value.cell_contents if value != CellType() else None
        return inner.__qualname__ if isinstance(inner, FunctionType | MethodType) else spelled(inner)
    if isinstance(value, CodeType):
        return spelled([value.co_code, value.co_names, value.co_consts])
    if isinstance(value, partial):
        return spelled([value.func, value.args, value.keywords])
    if isinstance(value, Mapping):
        return spelled(list(value.items()))
    if isinstance(value, list | tuple):
        whole = [spelled(one) for one in value[:MOST]]
        return str(whole) if len(value) <= MOST else f"{len(value)} {whole}"
    if isinstance(value, set | frozenset):
        return str(sorted(spelled(one) for one in value)) if len(value) <= MOST else f"{len(value)} in a set"
    if isinstance(value, Tensor):
        return str(_of_tensor(value))
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


MOST = 1000
"""Entries of one container that are looked at."""

_FUNCTION = ("qualname", "code", "defaults", "kwdefaults", "closure")


def _of_tensor(value: Tensor, start: int = 0) -> int:
    if value.is_meta:  # it has no numbers
        return zlib.crc32(repr((tuple(value.shape), value.dtype)).encode(), start)
    return zlib.crc32(bytes_of(value), start)


def bytes_of(value: Tensor) -> bytes:
    """The numbers of a tensor, row by row, whatever its device and layout; of which shape and type they do not say."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
