"""Scores on disk as they come, so that a search that was killed goes on where it was.

``scores.jsonl`` is only ever appended to, a line a score; a last line that was cut short is dropped. This is safe
against a killed process; what the operating system had not yet written when the power failed is scored again.
``search.json`` names what the scores depend on: scores found under other settings are never mixed in. The checksum of
each line covers both, so that neither a damaged line nor one of another search is taken, whatever happened to the file
beside it.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.files import LOCK, locked, read_json, write_json
from nni_blockswap.scoring.proxies import Score

PATIENCE = 60.0
"""Seconds to wait for another search in the same folder: NNI's dispatcher outlives a killed manager for a while."""


class Journal:
    """Scores by (draw of the weights, choices).

    Args:
        folder: where the files are; None keeps the scores in memory.
        identity: what the scores depend on, JSON-able.

    Raises:
        StateError: the folder holds scores that were found under another identity, or that are damaged.
        ConfigError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self._scores: dict[tuple[int, str], Score] = {}
        self._folder, self._hold = folder, ExitStack()
        self._stream: TextIO | None = None
        plain = json.loads(json.dumps(identity))
        self._name = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
        if folder is None:
            return
        taken = f"another search is at work in '{folder}'; wait for its end, or choose another output folder."
        try:
            with ExitStack() as hold:
                hold.enter_context(locked(folder / LOCK, PATIENCE, taken))
                _check_identity(folder, plain)
                self._read(folder / "scores.jsonl")
                self._stream = (folder / "scores.jsonl").open("a", encoding="utf-8")
                self._hold = hold.pop_all()
        except OSError as error:
            raise ConfigError(
                f"'{folder}' is no folder that can be written to ({error.strerror}); choose another output folder."
            ) from error

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, key: tuple[int, str]) -> bool:
        return key in self._scores

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """The keys, in the order in which the scores came."""
        return iter(self._scores)

    def __getitem__(self, key: tuple[int, str]) -> Score:
        return self._scores[key]

    def add(self, init: int, choices: str, score: Score) -> None:
        """Record a score; no kill of this process can lose it once this returns."""
        self._scores[init, choices] = score
        if self._stream is not None:
            self._stream.write(_line(init, choices, score, self._name))
            self._stream.flush()

    def close(self) -> None:
        """Close the file and let others into the folder; where there is no score, other settings, too."""
        if self._folder is not None and self._stream is not None:
            stream, self._stream = self._stream, None
            with self._hold:  # falls also where the disk has no room for what is left to be written
                stream.close()
                if not self._scores:
                    (self._folder / "search.json").unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        complete, _, rest = path.read_bytes().rpartition(b"\n")
        if rest:  # a line that was being written when the search was killed
            with path.open("r+b") as stream:
                stream.truncate(len(complete) + bool(complete))
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                init, choices, score = _record(line, self._name)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise StateError(
                    f"line {number} of '{path}' is damaged, or of another search or version ({error}); delete the "
                    "line, or the file, and start again: what was in it is found anew."
                ) from error
            self._scores[init, choices] = score


def _line(init: int, choices: str, score: Score, search: int) -> str:
    """A score as a line of the file, with a checksum of it and of what it depends on, ``search``."""
    record = {"init": init, "choices": choices, "score": score.value, "blocks": list(score.blocks)}
    return json.dumps({**record, "crc": _checksum(record, search)}) + "\n"


def _record(line: bytes, search: int) -> tuple[int, str, Score]:
    """What ``_line`` wrote. ValueError, KeyError, TypeError where it did not."""
    record = dict(json.loads(line))
    if "crc" not in record:
        raise ValueError("it has no checksum")
    checksum = record.pop("crc")
    if record.keys() != {"init", "choices", "score", "blocks"} or checksum != _checksum(record, search):
        raise ValueError("it is not what this search wrote")
    init, choices, numbers = record["init"], record["choices"], [record["score"], *record["blocks"]]
    if (
        not isinstance(init, int)
        or not isinstance(choices, str)
        or not all(isinstance(one, float | int) for one in numbers)
    ):
        raise TypeError("it is no score")
    return init, str(choices), Score(numbers[0], tuple(numbers[1:]))


def _checksum(record: Mapping[str, Any], search: int) -> str:
    return f"{zlib.crc32(json.dumps(record).encode(), search):08x}"


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "search.json"
    if not path.exists():
        write_json(path, identity)
        return
    try:
        before = dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise StateError(f"'{path}' is damaged; choose another output folder, or delete this one.") from error
    changed = [
        f"{key} was {before.get(key)!r}, now {identity.get(key)!r}"
        for key in sorted(before.keys() | identity.keys())
        if before.get(key) != identity.get(key)
    ]
    if changed:
        raise StateError(
            f"'{folder}' holds scores of a search with other settings ({'; '.join(changed)}); "
            "choose another output folder, or delete this one."
        )
