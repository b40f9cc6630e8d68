"""Scored architectures in order, and their files: ranking.csv, one row a candidate, and best.json."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ScoreError, SpaceError, StateError
from nni_blockswap.files import read_json
from nni_blockswap.results.tables import write_csv
from nni_blockswap.scoring.proxies.combination import scores_of

NON_FINITE = "non-finite"
"""Flag of a candidate whose score is infinite or no number."""


@dataclass(frozen=True)
class Ranking:
    """The candidates of one budget, best first.

    Attributes:
        budget: its label.
        architectures: all of one space; those without a finite score come last.
    """

    budget: str
    architectures: tuple[Architecture, ...]

    @classmethod
    def of(cls, budget: str, scored: Iterable[Architecture], *, higher_is_better: bool) -> "Ranking":
        """Put scored architectures in order; ties are broken by id, so that the order is always the same."""

        def place(architecture: Architecture) -> tuple[bool, float, str]:
            score = architecture.score
            if score is None or not math.isfinite(score):
                return True, 0.0, architecture.id
            return False, -score if higher_is_better else score, architecture.id

        return cls(budget, tuple(sorted(scored, key=place)))

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self.architectures)

    def __len__(self) -> int:
        return len(self.architectures)

    @classmethod
    def together(cls, name: str, rankings: Mapping[str, "Ranking"]) -> "Ranking":
        """The candidates of several rankings, the same in each, by a combination of their scores.

        Args:
            name: of the combination, see ``scoring.proxies.combination``.
            rankings: by proxy.
        """
        first, *_ = rankings.values()
        ids = [one.id for one in first.architectures]
        found = {proxy: {one.id: one.score for one in ranking.architectures} for proxy, ranking in rankings.items()}
        columns = {
            proxy: [math.nan if (score := of[id_]) is None else score for id_ in ids] for proxy, of in found.items()
        }
        scored = []
        for position, (one, value) in enumerate(zip(first.architectures, scores_of(name, columns), strict=True)):
            singles = {proxy: column[position] for proxy, column in columns.items()}
            provenance = {**one.provenance, "proxy": name, "scores": singles, "block_scores": []}
            scored.append(one.scored(value, provenance))
        return cls.of(first.budget, scored, higher_is_better=True)

    @property
    def best(self) -> Architecture:
        """The first. Raises ScoreError where no candidate has a finite score."""
        first = self.architectures[0]
        if not _is_finite(first):
            raise ScoreError(
                f"none of the {len(self.architectures)} candidates at {self.budget} has a finite score; "
                "look at the data, or use --precision float32."
            )
        return first

    def top(self, count: int) -> tuple[Architecture, ...]:
        """The first ``count`` with a finite score; fewer where there are fewer."""
        return tuple(architecture for architecture in self.architectures[:count] if _is_finite(architecture))

    def save(self, folder: str | Path) -> None:
        """Write ``folder``/ranking.csv and, where a score is finite, ``folder``/best.json, each atomically."""
        write_csv(Path(folder) / "ranking.csv", self._rows())
        for best in self.top(1):
            best.save(Path(folder) / "best.json")

    @classmethod
    def load(cls, folder: str | Path) -> "Ranking":
        """Read what ``save`` wrote, without scores by block. Raises SpaceError where it is missing or is no ranking."""
        best = Architecture.load(Path(folder) / "best.json")
        shared = {name: value for name, value in best.provenance.items() if name != "block_scores"}
        try:
            with (Path(folder) / "ranking.csv").open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            architectures = tuple(
                replace(
                    Architecture.from_choices(
                        best.space, {label: row[label] for label in best.choices}, best.space_args
                    ).scored(float(row["score"]), shared),
                    costs={name: int(row[name]) for name in best.costs},
                )
                for row in rows
            )
            if not architectures:
                raise ValueError("it has no rows")
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise SpaceError(f"'{folder}/ranking.csv' is not a ranking: {error!r}; run the search again.") from error
        return cls(str(best.provenance.get("budget", "")), architectures)

    def _rows(self) -> Iterator[list[object]]:
        first = self.architectures[0]
        yield ["rank", "score", *first.costs, *first.choices, "id", "flag"]
        for rank, one in enumerate(self.architectures, start=1):
            flag = "" if _is_finite(one) else NON_FINITE
            yield [rank, repr(one.score), *one.costs.values(), *one.choices.values(), one.id, flag]


def check_overwrites(folders: Iterable[Path], extents: Iterable[Mapping[str, Any]]) -> None:
    """Raise StateError where a folder holds the best of a ranking whose provenance differs from its extent."""
    for folder, extent in zip(folders, extents, strict=False):
        path = folder / "best.json"
        before = _provenance(path) if path.exists() else {}
        changed = [
            f"{name} was {before[name]}, now {value}"
            for name, value in extent.items()
            if before.get(name, value) != value
        ]
        if changed:
            raise StateError(
                f"'{folder}' holds another ranking ({', '.join(changed)}); choose another output folder, or delete "
                "best.json and ranking.csv there to have them replaced: the scores are kept and used again."
            )


def _provenance(path: Path) -> Mapping[str, Any]:
    """Of a saved architecture, which is not built for that."""
    try:
        found = read_json(path)["provenance"]
        if not isinstance(found, Mapping):
            raise TypeError("its provenance is no mapping")
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"'{path}' is damaged ({error!r}); delete it, and the ranking is written anew.") from error
    return found


def _is_finite(architecture: Architecture) -> bool:
    return architecture.score is not None and math.isfinite(architecture.score)
