"""A library on disk: library.json, a file of weights a block, and errors.csv for people."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nni_blockswap.cost.table import ORIGINAL, Table
from nni_blockswap.errors import StateError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.library import store
from nni_blockswap.library.bench import learned, of_candidate
from nni_blockswap.library.measuring import NONE, Error
from nni_blockswap.results.tables import write_csv
from nni_blockswap.spaces import complete_args
from nni_blockswap.tasks import TASKS, usual

ABOUT, ERRORS, CHECK = "library.json", "errors.csv", "check"

KINDS = {
    "space": str,
    "space_args": dict,
    "labels": list,
    "data": str,
    "teacher_digest": str,
    "steps": dict,
    "seed": int,
}
"""What library.json holds at least."""

IMAGE_OPTIONS = {"image_size"}
"""Options of data sets that change what an image is; others choose among images, or augment them."""

FLOOR = 0.01
"""Added to errors before their logarithm is taken: differences far below it say nothing, and the original's is 0."""


FORMS: dict[str, Callable[[float], float]] = {"sum": float, "log": lambda error: math.log(error + FLOOR)}
"""How errors become terms of a sum: as they are, or by their logarithms."""


@dataclass(frozen=True)
class Library:
    """A finished library.

    Attributes:
        folder: where it is.
        about: what it was made of and how, see ``building``.
        errors: by block and candidate, that of the original among them.
        digests: of each block's weights.
    """

    folder: Path
    about: Mapping[str, Any]
    errors: Mapping[str, Mapping[str, Error]]
    digests: Mapping[str, str]

    @classmethod
    def load(cls, folder: str | Path) -> "Library":
        """What ``build`` left in ``folder``; weights are read, and held against their digest, when they are asked for.

        Raises:
            StateError: there is none, or it is not finished.
            CheckpointError: what it says of itself is damaged.
        """
        folder = Path(folder)
        about = read_about(folder)
        if about is None:
            raise StateError(f"there is no library in '{folder}'; 'blockswap library' builds one.")
        errors, digests = {}, {}
        for label in about["labels"]:
            path = folder / f"{label}.safetensors"
            if not path.exists():
                raise StateError(
                    f"the library in '{folder}' is not finished: {label} is missing; run its command again."
                )
            said = learned(path, label)
            errors[label] = {ORIGINAL: NONE} | {name: Error(*numbers) for name, numbers in said["errors"].items()}
            digests[label] = said["digest"]
            if said["steps"] != about["steps"].get(label):
                raise StateError(
                    f"the library in '{folder}' is not finished: {label} has made {said['steps']} steps, and others "
                    f"have not; run its command again with --steps {said['steps']}, or with --blocks {label} beside it "
                    "to leave the others as they are."
                )
        return cls(folder, about, errors, digests)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of all weights."""
        return hashlib.sha256(" ".join(self.digests.values()).encode()).hexdigest()[:16]

    def weights(self, label: str, name: str) -> dict[str, Tensor]:
        """Of a block's candidate, by the names that they have in its branch.

        Raises:
            StateError: none of that name has learned; or the block has learned more since the library was loaded.
            CheckpointError: they are damaged.
        """
        self.error(label, name)
        tensors, said = store.read(self.folder / f"{label}.safetensors")
        if said["digest"] != self.digests[label]:
            raise StateError(
                f"in the library in '{self.folder}' {label} has learned more since it was loaded, and its errors are "
                "others now; load it again once it is whole."
            )
        return of_candidate(tensors, name)

    def error(self, label: str, name: str) -> Error:
        """Of a block's candidate. Raises StateError where none of that name has learned."""
        try:
            return self.errors[label][name]
        except KeyError:
            raise StateError(
                f"the library in '{self.folder}' has no {name} for {label}, as one of another version may; build one."
            ) from None

    def check_space(self, space: str, space_args: Mapping[str, Any]) -> None:
        """Raise StateError unless the library is one of this space with these arguments."""
        asked, own = (space, complete_args(space, space_args)), (self.about["space"], self.about["space_args"])
        if asked != own:
            raise StateError(
                f"the library in '{self.folder}' is of {own[0]} with {own[1]}, not of {asked[0]} with {asked[1]}; "
                "build one for that."
            )

    def check(self, space: str, space_args: Mapping[str, Any], data: str, data_options: Mapping[str, Any]) -> None:
        """Raise StateError unless the library is one of this space and of such data; see ``check_data``."""
        self.check_space(space, space_args)
        self.check_data(data, data_options)

    def check_data(self, data: str, data_options: Mapping[str, Any]) -> None:
        """Raise StateError unless the library learned from the data set of this name, and from images of this kind.

        Args:
            data: the name.
            data_options: what is said about the data set; options that augment images, or leave some out, may differ,
                and so may what the library was not told, of a data set that is no name in ``TASKS``.
        """
        if data != self.about["data"]:
            raise StateError(
                f"the library in '{self.folder}' learned from {self.about['data']}, not from {data}; build one."
            )
        said = self.about.get("data_options", {})
        for option in data_options.keys() & IMAGE_OPTIONS:
            if option not in said and (":" in data or data not in TASKS):
                continue  # of somebody's own only an import would tell, and library.json names it
            own = said[option] if option in said else usual(data, option)
            if own != data_options[option]:
                raise StateError(
                    f"the library in '{self.folder}' learned from {data} with {option}={own}, not "
                    f"{option}={data_options[option]}; build one."
                )

    def check_teacher(self, state: Mapping[str, Tensor]) -> None:
        """Raise StateError unless it learned from the teacher of this state_dict."""
        if store.digest(state) != self.about["teacher_digest"]:
            own = self.about.get("teacher") or "original"  # None: the weights that the network came with
            raise StateError(
                f"the library in '{self.folder}' learned from another teacher ('{own}') than the one given; give that "
                "one, or build a library from this one."
            )

    def write_errors(self, table: Table) -> None:
        """Write errors.csv: block, candidate, error, standard error and what the candidate takes."""
        rows: list[Sequence[object]] = [["block", "candidate", "error", "standard_error", *table.columns]]
        for block, (label, names) in enumerate(zip(table.labels, table.candidates, strict=True)):
            for index, name in enumerate(names):
                error = self.error(label, name)
                costs = [int(column.costs[block][index]) for column in table.columns.values()]
                rows.append([label, name, f"{error.value:.6g}", f"{error.deviation:.3g}", *costs])
        write_csv(self.folder / ERRORS, rows)

    def values(self, table: Table, form: str = "sum") -> list[list[float]]:
        """What each candidate of each block of ``table`` adds to an architecture's score, by a form in ``FORMS``.

        Raises:
            StateError: none of a name has learned, or its error is no finite number.
        """
        value = FORMS[form]
        return [
            [value(self._finite(label, name)) for name in names]
            for label, names in zip(table.labels, table.candidates, strict=True)
        ]

    def _finite(self, label: str, name: str) -> float:
        error = self.error(label, name).value
        if not math.isfinite(error):
            raise StateError(
                f"in the library in '{self.folder}' the error of {name} for {label} is {error}, by which nothing can "
                "be chosen; leave that candidate out of the search space, or build one without it."
            )
        return error


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write library.json, with a check that tells when it was damaged."""
    write_json(folder / ABOUT, {**about, CHECK: _check(about)})


def _check(about: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of plain values by name, in any order."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def read_about(folder: Path) -> dict[str, Any] | None:
    """The content of library.json, without a look at what it names; None where there is none.

    Raises:
        StateError: it is damaged, or of an older version.
    """
    path = folder / ABOUT
    try:
        about = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateError(f"'{path}' is damaged ({error}); choose another folder, or delete this one.") from error
    if not isinstance(about, dict) or not all(isinstance(about.get(name), kind) for name, kind in KINDS.items()):
        raise StateError(f"'{path}' is damaged, or of another version; choose another folder, or delete this one.")
    if not about["labels"] or not all(isinstance(label, str) and label.isidentifier() for label in about["labels"]):
        raise StateError(f"'{path}' is damaged: its labels name no blocks; choose another folder, or delete this one.")
    if about.pop(CHECK, None) != _check(about):
        raise StateError(f"'{path}' is damaged, or of another version; choose another folder, or delete this one.")
    return about
