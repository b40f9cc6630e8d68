"""The table of choices: what each candidate of each block costs, exactly, by resource.

    cost(architecture) = fixed + sum_b costs_b[candidate of block b]            for each resource

Everything before the table knows networks and modules; everything after it knows these integers.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nni_blockswap.errors import BudgetError, SpaceError

ORIGINAL = "S"
"""The candidate that keeps a block's original branch."""

Indices = tuple[int, ...]
"""An architecture: the index of a candidate for every block."""


@dataclass(frozen=True)
class Column:
    """One resource.

    Attributes:
        unit: what a number counts, in the plural.
        fixed: what the rest of the network takes.
        costs: of every candidate, an array a block.
        source: of what was measured, where, when and how well it predicts.
    """

    unit: str
    fixed: int
    costs: tuple[NDArray[np.int64], ...]
    source: Mapping[str, Any] = field(default_factory=dict)

    def total(self, indices: Sequence[int]) -> int:
        """Cost of the architecture that takes candidate ``indices[b]`` in block b."""
        return self.fixed + sum(int(block[index]) for block, index in zip(self.costs, indices, strict=True))

    @property
    def reach(self) -> tuple[int, int]:
        """The least and the greatest total of all architectures."""
        least, most = (sum(int(pick(block)) for block in self.costs) for pick in (np.min, np.max))
        return self.fixed + least, self.fixed + most


class Speller(Protocol):
    """A place where candidates stand, as far as a table asks: which of several spellings it knows one by."""

    def canonical(self, name: str) -> str: ...


@dataclass(frozen=True)
class Table:
    """Candidates of every block and their costs; arrays run in the order of ``candidates``.

    Attributes:
        labels: of the blocks, in forward order.
        candidates: canonical names, a tuple a block.
        columns: by name of the resource, ``params`` first.
        sites: the blocks' places.
        whole: the table that this one was narrowed from, if any.
    """

    labels: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    columns: Mapping[str, Column]
    sites: tuple[Speller, ...] = ()
    whole: "Table | None" = None

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of the candidates of all blocks."""
        return f"{zlib.crc32(repr(self.candidates).encode()):08x}"

    @property
    def costs_digest(self) -> str:
        """The same of what they cost."""
        told = [(name, one.fixed, [block.tolist() for block in one.costs]) for name, one in self.columns.items()]
        return f"{zlib.crc32(repr((self.candidates, told)).encode()):08x}"

    @property
    def measured(self) -> dict[str, Any]:
        """Where and when costs were measured that are not counted, by resource, as ``measured``; empty if none was."""
        sources = {name: dict(column.source) for name, column in self.columns.items() if column.source}
        return {"measured": sources} if sources else {}

    def column(self, resource: str) -> Column:
        """The column of ``resource``. Raises BudgetError where the table has none."""
        if resource not in self.columns:
            raise BudgetError(f"this table has no resource '{resource}'; it has {', '.join(self.columns)}.")
        return self.columns[resource]

    def index(self, choices: Mapping[str, str] | Sequence[str]) -> Indices:
        """Candidate indices of ``choices``: substitutes in any spelling, in block order or by label.

        Raises:
            SpaceError: an unknown label or substitute, or not exactly one choice a block.
        """
        if not isinstance(choices, Mapping):
            if len(choices) != len(self.labels):
                raise SpaceError(f"the space has {len(self.labels)} blocks; {len(choices)} choices were given.")
            choices = dict(zip(self.labels, choices, strict=True))
        self._check_labels(choices)
        missing = [label for label in self.labels if label not in choices]
        if missing:
            raise SpaceError(f"{', '.join(missing)} has no choice; give every block one ('S' keeps the original).")
        return tuple(self._position(block, choices[label]) for block, label in enumerate(self.labels))

    def _check_labels(self, labels: Iterable[str]) -> None:
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            raise SpaceError(f"'{unknown[0]}' is not a block of the space; its blocks are {', '.join(self.labels)}.")

    def _position(self, block: int, name: str) -> int:
        names = self.candidates[block]
        try:
            return names.index(self.sites[block].canonical(name))
        except ValueError:
            raise SpaceError(
                f"'{name}' is not a candidate of {self.labels[block]}; choose from {', '.join(names)}."
            ) from None

    def total(self, resource: str, indices: Sequence[int]) -> int:
        """Cost of the architecture that takes candidate ``indices[b]`` in block b."""
        return self.column(resource).total(indices)

    def costs(self, indices: Sequence[int]) -> dict[str, int]:
        """Its cost by resource."""
        return {name: column.total(indices) for name, column in self.columns.items()}

    def names(self, indices: Sequence[int]) -> dict[str, str]:
        """Choices by label."""
        return {label: names[index] for label, names, index in zip(self.labels, self.candidates, indices, strict=True)}

    def original(self) -> Indices:
        """The original network: ``S`` in every block, or where the table lacks it the one with most parameters."""
        first = next(iter(self.columns.values()))
        return tuple(
            names.index(ORIGINAL) if ORIGINAL in names else int(np.argmax(costs))
            for names, costs in zip(self.candidates, first.costs, strict=True)
        )

    def original_cost(self, resource: str) -> int:
        """Cost of the space's original network, also where the table was narrowed and no longer offers it."""
        table = self if self.whole is None else self.whole
        return table.total(resource, table.original())

    def narrowed(self, allowed: Mapping[str, Sequence[str]]) -> "Table":
        """The same table with only the candidates in ``allowed`` (substitutes by label), in the table's order.

        Raises:
            SpaceError: a label or candidate is not in the table, or a block is left with none.
        """
        self._check_labels(allowed)
        keep: list[list[int]] = []
        for block, (label, names) in enumerate(zip(self.labels, self.candidates, strict=True)):
            kept = sorted({self._position(block, name) for name in allowed.get(label, names)})
            if not kept:
                raise SpaceError(f"{label} has no candidate left; list at least one of {', '.join(names)}.")
            keep.append(kept)
        return self.kept(keep)

    def kept(self, keep: Sequence[Sequence[int]]) -> "Table":
        """The same table with only the candidates at the positions ``keep[b]`` in block b, in that order."""
        return replace(
            self,
            candidates=tuple(tuple(names[i] for i in rows) for names, rows in zip(self.candidates, keep, strict=True)),
            columns={
                name: replace(
                    column, costs=tuple(block[list(rows)] for block, rows in zip(column.costs, keep, strict=True))
                )
                for name, column in self.columns.items()
            },
            whole=self if self.whole is None else self.whole,
        )
