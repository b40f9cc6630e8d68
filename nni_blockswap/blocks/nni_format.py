"""NNI's search space format, ``{"block_00": {"_type": "choice", "_value": ["S", ...]}, ...}``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_blockswap.cost.table import Table
from nni_blockswap.errors import SpaceError, shown
from nni_blockswap.files import read_json


def to_nni(table: Table) -> dict[str, Any]:
    """The candidates of every block, as NNI writes them."""
    return {
        label: {"_type": "choice", "_value": list(names)}
        for label, names in zip(table.labels, table.candidates, strict=True)
    }


def from_nni(content: Any) -> dict[str, list[str]]:
    """Candidates by block label. Raises SpaceError where an entry is not a choice."""
    rule = 'maps each block to {"_type": "choice", "_value": [substitutes]}; write one with blockswap space --json'
    if not isinstance(content, Mapping):
        raise SpaceError(f"a search space {rule}; this one is {shown(content)}.")
    found = {}
    for label, entry in content.items():
        values = entry.get("_value") if isinstance(entry, Mapping) and entry.get("_type") == "choice" else None
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise SpaceError(f"a search space {rule}; its '{label}' is {shown(entry)}.")
        found[str(label)] = values
    return found


def read_candidates(path: str | Path) -> dict[str, list[str]]:
    """Candidates by block label, from a file in NNI's format."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise SpaceError(f"no search space can be read from '{path}': {error}.") from error
    return from_nni(content)


def unlisted(table: Table, listed: Mapping[str, Sequence[str]]) -> list[str]:
    """What ``table`` has and a search space, given as candidates by block, leaves out, as "W(1/2) of block_00".

    Raises:
        SpaceError: a label or candidate is not in the table, or a block is left with none.
    """
    kept = table.narrowed(listed).candidates
    return [
        f"{name} of {label}"
        for label, names, left in zip(table.labels, table.candidates, kept, strict=True)
        for name in names
        if name not in left
    ]
