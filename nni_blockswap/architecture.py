"""Architecture: the one currency between search, ranking, tuner, trial and export; immutable, JSON."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from nni_blockswap.cost.resources import unit_of
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import SpaceError, shown
from nni_blockswap.files import read_json, write_json
from nni_blockswap.finite import is_finite
from nni_blockswap.spaces import ALWAYS, complete_args, cost_table, load_space
from nni_blockswap.trust import distrust


@dataclass(frozen=True)
class Architecture:
    """A network of a search space: one substitute a block.

    Attributes:
        space: the search space's class as "module:Class".
        space_args: all arguments of its constructor, defaults included.
        choices: canonical substitute by block label, in forward order.
        costs: by resource; parameters, and MACs for one image of the space's input size, are always there.
        score: what a proxy gave it, or None.
        provenance: how the score came about: proxy, seed, batch fingerprint, versions, ...
    """

    space: str
    space_args: Mapping[str, Any]
    choices: Mapping[str, str]
    costs: Mapping[str, int]
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
        cls, space: str, space_args: Mapping[str, Any], table: Table, indices: Sequence[int]
    ) -> "Architecture":
        """The architecture that takes candidate ``indices[b]`` of ``table`` in block b."""
        return cls(space, space_args, table.names(indices), table.costs(indices))

    @classmethod
    def original(cls, space: str, space_args: Mapping[str, Any] | None = None) -> "Architecture":
        """The original network of ``space``: ``S`` in every block, or what the space has in its place.

        Raises:
            SpaceError: no such space or argument.
        """
        arguments = complete_args(space, space_args or {})
        table = cost_table(space, arguments)
        return cls.from_indices(space, arguments, table, table.original())

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self.costs["params"]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image of the space's input size."""
        return self.costs["macs"]

    @property
    def spelled_costs(self) -> str:
        """For people: ``2,243,546 parameters, 327,598,080 MACs``."""
        return ", ".join(f"{cost:,} {unit_of(name)}" for name, cost in self.costs.items())

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the network: its space, arguments and choices."""
        identity = json.dumps([self.space, dict(self.space_args), dict(self.choices)], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:12]

    def teacher(self) -> "Architecture":
        """The original network of the same space."""
        return Architecture.original(self.space, self.space_args)

    def build(self) -> nn.Module:
        """The network, its weights as the space's constructor draws them from torch's global generator.

        Its attribute ``architecture`` says which one it is, unless it has one that means something else.
        """
        network = load_space(self.space).build(self.choices, **self.space_args)
        if isinstance(getattr(network, "architecture", self), Architecture):
            vars(network)["architecture"] = self
        return network

    def scored(self, score: float, provenance: Mapping[str, Any]) -> "Architecture":
        """The same network with a score and how it came about."""
        return replace(self, score=score, provenance=provenance)

    def to_json(self) -> dict[str, Any]:
        """Plain values, costs among them by name; ``from_json`` reads them back."""
        named: dict[str, Any] = {"space": self.space, "space_args": dict(self.space_args)}
        named |= {"choices": dict(self.choices), **self.costs}
        return named | {"score": self.score, "provenance": dict(self.provenance)}

    @classmethod
    def from_json(cls, content: Any, where: str = "this", allow: Sequence[str] | None = ()) -> "Architecture":
        """What ``to_json`` wrote; parameters and MACs are counted anew, so that a text edited by hand cannot lie.

        Costs of other resources, measured or counted by an object of the user's own, are as they stand there: what
        reads them need not know the resource.

        Args:
            content: what a file held.
            where: the file, for messages.
            allow: packages that it may name, beside those of ``trust``: their code is run; None allows all.

        Raises:
            SpaceError: it is not an architecture, or names another package.
        """
        missing = {"space", "choices"} - content.keys() if isinstance(content, dict) else {"space", "choices"}
        if missing:
            raise SpaceError(f"{where} is not an architecture: it lacks {' and '.join(sorted(missing))}.")
        kinds: dict[str, Any] = {"space": str, "choices": list | dict, "space_args": dict | None}
        kinds |= {"score": float | int | None, "provenance": dict | None}
        for name, kind in kinds.items():
            if not isinstance(content.get(name), kind):
                raise SpaceError(f"{where} is not an architecture: its {name} is {shown(content[name])}.")
        score, provenance = content.get("score"), content.get("provenance") or {}
        if _measured(provenance.get("measured", {}), content) is None or not _is_score(score):
            raise SpaceError(f"{where} is not an architecture: its score or a measured cost is no number.")
        try:
            with nullcontext() if allow is None else distrust(allow):
                found = cls.from_choices(content["space"], content["choices"], content.get("space_args"))
        except SpaceError as error:
            raise SpaceError(f"{where} is not an architecture that can be built here: {error}") from error
        others = {name: cost for name, cost in content.items() if name not in {*kinds, *ALWAYS} and type(cost) is int}
        return replace(found, costs={**found.costs, **others}, score=score, provenance=provenance)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path, *, allow: Sequence[str] | None = ()) -> "Architecture":
        """Read what ``save`` wrote, as ``from_json`` does. Raises SpaceError where the file is missing or is none."""
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise SpaceError(f"no architecture can be read from '{path}': {error}.") from error
        return cls.from_json(content, f"'{path}'", allow)

    def to_parameters(self, rank: int | None = None) -> dict[str, Any]:
        """What a trial is given to train it: finite plain numbers and text, as NNI demands.

        Choices stand at the top level, where NNI's web page draws them as axes, beside costs, score and rank. Of costs
        that were measured, ``measured`` says where and when.
        """
        sources = self.provenance.get("measured")
        return {
            **self.choices,
            "space": self.space,
            "space_args": dict(self.space_args),
            **self.costs,
            "score": self.score,
            "rank": rank,
            "architecture_id": self.id,
            **({} if sources is None else {"measured": sources}),
        }

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Any], space: str | None = None, space_args: Mapping[str, Any] | None = None
    ) -> "Architecture":
        """The architecture that a trial is given.

        Args:
            parameters: what ``to_parameters`` gave, maybe with more beside it, or a choice by block label alone, as
                NNI's own tuners have it.
            space: of parameters that name none.
            space_args: of that space.

        Raises:
            SpaceError: nobody names a space, or the choices are none of its.
        """
        space = parameters.get("space", space)
        if space is None:
            raise SpaceError("the tuner names no space; add --space (and --space-arg) to the trial's command.")
        arguments = complete_args(space, parameters.get("space_args", space_args or {}))
        labels = cost_table(space, arguments).labels
        choices = {name: value for name, value in parameters.items() if name in labels or name.startswith("block_")}
        found = cls.from_choices(space, choices, arguments)
        score, sources = parameters.get("score"), parameters.get("measured", {})
        measured = _measured(sources, parameters) or {}
        found = replace(found, costs={**found.costs, **measured}, provenance={"measured": sources} if measured else {})
        return found if score is None else found.scored(score, {"rank": parameters.get("rank"), **found.provenance})


def _measured(sources: Any, content: Mapping[str, Any]) -> dict[str, int] | None:
    """The costs in ``content`` that ``sources`` says were measured; None where they are no numbers."""
    names = [name for name in sources if name not in ALWAYS] if isinstance(sources, dict) else [""]
    found = {name: content.get(name) for name in names}
    return cast(dict[str, int], found) if all(type(cost) is int for cost in found.values()) else None


def _is_score(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and type(value) is not bool and is_finite(value))
