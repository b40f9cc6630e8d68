"""Scores on disk as they come, so that a search that was killed goes on where it was.

``scores.jsonl`` is only ever appended to, a line a score; a last line that was cut short is dropped. This is safe
against a killed process; what the operating system had not yet written when the power failed is scored again.
``search.json`` names what the scores depend on: scores found under other settings are never mixed in.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.scoring.proxies import Score


class Journal:
    """Scores by (draw of the weights, choices).

    Args:
        folder: where the files are; None keeps the scores in memory.
        identity: what the scores depend on, JSON-able.

    Raises:
        StateError: the folder holds scores that were found under another identity.
        ConfigError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self._scores: dict[tuple[int, str], Score] = {}
        self._folder, self._stream = folder, None
        if folder is not None:
            path = folder / "scores.jsonl"
            try:
                _check_identity(folder, json.loads(json.dumps(identity)))
                self._read(path)
                self._stream = path.open("a", encoding="utf-8")
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
            record = {"init": init, "choices": choices, "score": score.value, "blocks": score.blocks}
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the file; where there is no score, other settings may use the folder."""
        if self._folder is not None and self._stream is not None:
            self._stream.close()
            if not self._scores:
                (self._folder / "search.json").unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        complete, _, rest = path.read_bytes().rpartition(b"\n")
        if rest:  # a line that was being written when the search was killed
            with path.open("r+b") as stream:
                stream.truncate(len(complete) + bool(complete))
        try:
            for line in complete.decode().splitlines():
                record = json.loads(line)
                self._scores[record["init"], record["choices"]] = Score(record["score"], tuple(record["blocks"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"'{path}' is damaged ({error}); delete the damaged line and start again.") from error


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "search.json"
    if not path.exists():
        write_json(path, identity)
        return
    try:
        before = read_json(path)
    except ValueError as error:
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
