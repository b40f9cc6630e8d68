"""Search spaces by name: finding one, all of its arguments, and its table of choices."""

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, cast

from torch import nn

from nni_blockswap.cost.resources import RESOURCES
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import BlockSwapError, SpaceError, first_line, shown
from nni_blockswap.registry import load

NETWORK = "nni_blockswap.blocks.network:NetworkSpace"
"""The space over a network of one's own, named by the import path of a function that returns it."""

OWN = ("model", "model_args", "input_size", "include", "exclude")
"""Arguments of ``NETWORK`` that may stand beside other settings, in place of ``space`` and ``space_args``."""

ALWAYS = ("params", "macs")
"""Resources of which every architecture tells its cost."""


class Space(Protocol):
    """What an architecture needs of its search space's class (see ``blocks.space.BlockSpace``)."""

    def __call__(self, **space_args: Any) -> Any: ...
    def build(self, choices: Mapping[str, str], **space_args: Any) -> nn.Module: ...
    def cost_table(self, resources: Sequence[str], **space_args: Any) -> Table: ...


def with_space(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` in which a ``model``, if there is one, is spelled as a space with its arguments.

    Raises:
        SpaceError: there are both.

    Example:
        >>> with_space({"model": "torchvision.models:resnet18", "input_size": [3, 64, 64], "seed": 1})["space_args"]
        {'model': 'torchvision.models:resnet18', 'input_size': [3, 64, 64]}
    """
    if settings.get("model") is None:
        return {name: value for name, value in settings.items() if name not in OWN or value not in (None, {}, [])}
    if settings.get("space") is not None:
        raise SpaceError("a space and a model are given; name one of them.")
    named = {name: settings[name] for name in OWN if settings.get(name) not in (None, {}, [])}
    others = {name: value for name, value in settings.items() if name not in OWN}
    return {**others, "space": NETWORK, "space_args": {**named, **(settings.get("space_args") or {})}}


def load_space(space: str) -> Space:
    """The search space's class named "module:Class".

    Raises:
        SpaceError: it cannot be imported or is not a search space.
    """
    module, _, name = space.partition(":")
    if not module or not name:
        raise SpaceError(
            f"a space is written module:Class, as in search_spaces.wide_resnet:WideResNetSpace, not '{space}'."
        )
    found = load(space, "space", SpaceError)
    if not (isinstance(found, type) and hasattr(found, "cost_table")):
        raise SpaceError(f"'{space}' is not a search space; derive it from nni_blockswap.blocks.space.BlockSpace.")
    return cast(Space, found)


def complete_args(space: str, space_args: Mapping[str, Any]) -> dict[str, Any]:
    """``space_args`` with the constructor's defaults filled in.

    Raises:
        SpaceError: the constructor has no such argument, or lacks one.
    """
    try:
        arguments = named_arguments(load_space(space), **space_args)
    except TypeError as error:
        raise SpaceError(f"the arguments {shown(dict(space_args))} do not fit {space}: {error}.") from error
    try:
        return cast(dict[str, Any], json.loads(json.dumps(arguments)))  # as they read back from a file
    except (TypeError, ValueError, RecursionError) as error:
        raise SpaceError(f"the arguments of {space} are numbers, texts, lists and mappings: {error}.") from error


def named_arguments(space: Any, *positional: Any, **named: Any) -> dict[str, Any]:
    """All arguments of a space's constructor by name, defaults included. Raises TypeError where they do not fit."""
    constructor = space.__init__
    for base in space.__mro__:  # NNI wraps the constructor of every class, an inherited one again, and hides signatures
        if vars(base).get("__init__") is constructor:
            constructor = vars(base).get("_init_wrapped", constructor)
    bound = inspect.signature(constructor).bind(None, *positional, **named)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL and value:
            raise TypeError(f"arguments are given by name, and {value!r} have none")
        if kind is not inspect.Parameter.VAR_POSITIONAL:
            found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


def cost_table(space: str, space_args: Mapping[str, Any] | None = None, resources: Sequence[str] = ()) -> Table:
    """Costs of every candidate of every block of ``space``; remembered.

    Args:
        resources: names of further ones than parameters and MACs.

    Raises:
        SpaceError: no such space, or its constructor cannot take these arguments.
    """
    wanted = tuple(dict.fromkeys((*ALWAYS, *resources)))
    meant = tuple(id(RESOURCES[name]) for name in wanted)  # a notebook may define one anew
    return _prepare(space, json.dumps(complete_args(space, space_args or {})), wanted, meant)


def table_of_blocks(space: str, space_args: Mapping[str, Any] | None = None, resources: Sequence[str] = ()) -> Table:
    """``cost_table`` of a space that has blocks. Raises SpaceError where it has none, too."""
    table = cost_table(space, space_args, resources)
    if not table.labels:
        raise SpaceError(f"{space} has no block, so there is nothing to swap; take a space that has.")
    return table


@lru_cache(maxsize=16)
def _prepare(space: str, arguments: str, resources: tuple[str, ...], meant: tuple[int, ...]) -> Table:
    try:
        return load_space(space).cost_table(resources, **json.loads(arguments))
    except BlockSwapError:
        raise
    except Exception as error:  # a space may be anybody's, and its constructor divides, looks up, unpacks
        reason = f"{first_line(error)} ({type(error).__name__})"
        raise SpaceError(f"the arguments {shown(json.loads(arguments))} do not fit {space}: {reason}.") from error
