"""Architecture: the one currency between sampler, ranking, tuner, trial and export; immutable, JSON."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from nni_blockswap.blocks.substitutes.paper import IDENTITY
from nni_blockswap.cost.table import CostTable
from nni_blockswap.errors import SpaceError
from nni_blockswap.files import read_json, write_json


class Space(Protocol):
    """What an architecture needs of its search space's class (see ``blocks.BlockSpace``)."""

    def __call__(self, **space_args: Any) -> Any: ...
    def build(self, choices: Mapping[str, str], **space_args: Any) -> nn.Module: ...
    def cost_table(self, **space_args: Any) -> CostTable: ...


@dataclass(frozen=True)
class Architecture:
    """A network of a search space: one substitute a block.

    Attributes:
        space: the search space's class as "module:Class".
        space_args: all arguments of its constructor, defaults included.
        choices: canonical substitute by block label, in forward order.
        params: number of parameters.
        macs: multiply-accumulates for one image of the space's input size.
        score: what a proxy gave it, or None.
        provenance: how the score came about: proxy, seed, batch fingerprint, versions, ...
    """

    space: str
    space_args: Mapping[str, Any]
    choices: Mapping[str, str]
    params: int
    macs: int
    score: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_choices(
        cls, space: str, choices: Sequence[str] | Mapping[str, str], space_args: Mapping[str, Any] | None = None
    ) -> "Architecture":
        """The architecture of ``space`` with ``choices``: a list in block order, or substitutes by block label.

        Any spelling of a substitute is understood.

        Raises:
            SpaceError: no such space, argument, block or substitute, or not exactly one choice a block.
        """
        arguments = complete_args(space, space_args or {})
        table = cost_table(space, arguments)
        return cls.from_indices(space, arguments, table, table.index(choices))

    @classmethod
    def from_indices(
        cls, space: str, space_args: Mapping[str, Any], table: CostTable, indices: Sequence[int]
    ) -> "Architecture":
        """The architecture that takes candidate ``indices[b]`` of ``table`` in block b."""
        return cls(
            space, space_args, table.names(indices), table.total("params", indices), table.total("macs", indices)
        )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the network: its space, arguments and choices."""
        identity = json.dumps([self.space, dict(self.space_args), dict(self.choices)], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:12]

    def teacher(self) -> "Architecture":
        """The original network of the same space: ``S`` in every block."""
        return Architecture.from_choices(self.space, dict.fromkeys(self.choices, IDENTITY), self.space_args)

    def build(self) -> nn.Module:
        """The network, its weights as the space's constructor draws them from torch's global generator."""
        return load_space(self.space).build(self.choices, **self.space_args)

    def scored(self, score: float, provenance: Mapping[str, Any]) -> "Architecture":
        """The same network with a score and how it came about."""
        return replace(self, score=score, provenance=provenance)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Architecture":
        """Read what ``save`` wrote; costs are counted anew, so that a file edited by hand cannot lie.

        Raises:
            SpaceError: the file is missing or is not an architecture.
        """
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise SpaceError(f"no architecture can be read from '{path}': {error}.") from error
        missing = {"space", "choices"} - content.keys() if isinstance(content, dict) else {"space", "choices"}
        if missing:
            raise SpaceError(f"'{path}' is not an architecture: it lacks {' and '.join(sorted(missing))}.")
        found = cls.from_choices(content["space"], content["choices"], content.get("space_args"))
        return replace(found, score=content.get("score"), provenance=content.get("provenance", {}))


def load_space(space: str) -> Space:
    """The search space's class named "module:Class".

    Raises:
        SpaceError: it cannot be imported or is not a search space.
    """
    module_name, _, class_name = space.partition(":")
    if not module_name or not class_name:
        raise SpaceError(
            f"a space is written module:Class, as in search_spaces.wide_resnet:WideResNetSpace, not '{space}'."
        )
    try:
        found = getattr(import_module(module_name), class_name)
    except Exception as error:
        raise SpaceError(
            f"the space '{space}' cannot be imported ({type(error).__name__}: {error}); "
            f"start in the folder that holds '{module_name.split('.')[0]}', or put it on PYTHONPATH."
        ) from error
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
        raise SpaceError(f"the arguments {dict(space_args)} do not fit {space}: {error}.") from error
    return cast(dict[str, Any], json.loads(json.dumps(arguments)))  # as they read back from a file


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


def cost_table(space: str, space_args: Mapping[str, Any] | None = None) -> CostTable:
    """Costs of every candidate of every block of ``space``; remembered.

    Raises:
        SpaceError: no such space, or its constructor cannot take these arguments.
    """
    return _prepare(space, json.dumps(complete_args(space, space_args or {})))


@lru_cache(maxsize=16)
def _prepare(space: str, arguments: str) -> CostTable:
    try:
        return load_space(space).cost_table(**json.loads(arguments))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise SpaceError(f"the arguments {json.loads(arguments)} do not fit {space}: {reason}.") from error
