"""Trials that came to an end, and points of a comparison: the mean and spread over a method's trials, one a seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import StateError
from nni_blockswap.files import read_json
from nni_blockswap.metric import ACCURACY, judged
from nni_blockswap.results.trial import RESULT, read_result

BLOCKSWAP, REDUCED, TEACHER = "blockswap", "reduced", "teacher"
COMPARABLE = ("data", "data_options", "epochs")
"""What trials must have in common for their errors to be compared."""


@dataclass(frozen=True)
class Trial:
    """A training that came to an end.

    Attributes:
        method, variant, seed: see ``comparison.contestants``; outside a comparison ``blockswap`` and its id.
        params: those that are not zero.
        error: on the validation set after the last epoch, in percent.
        teacher_error: the same of its teacher, or None where it had none.
        setting: of ``COMPARABLE``, what its settings say.
        own_kind: whether that is not the space's original but a network of its own kind, and its recipe its own.
        in_comparison: whether its variant is a budget or setting, and not what names a student of one search.
    """

    method: str
    variant: str
    seed: int
    architecture: Architecture
    params: int
    error: float
    teacher_error: float | None
    setting: Mapping[str, Any] = field(default_factory=dict)
    own_kind: bool = False
    in_comparison: bool = False


@dataclass(frozen=True)
class Point:
    """Trials of one method and variant."""

    method: str
    variant: str
    trials: tuple[Trial, ...]

    @property
    def params(self) -> float:
        """Mean over the trials, whose architectures may differ."""
        return mean(one.params for one in self.trials)

    @property
    def macs(self) -> float:
        """Mean over the trials; those of zero weights count too."""
        return mean(one.architecture.macs for one in self.trials)

    @property
    def error(self) -> float:
        """Mean over the trials, in percent."""
        return mean(one.error for one in self.trials)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the trials (n - 1), or None for a single one."""
        return stdev(one.error for one in self.trials) if len(self.trials) > 1 else None


def read_trials(folders: Iterable[str | Path]) -> list[Trial]:
    """The trials below ``folders``; of two with the same architecture, method, variant and seed the later.

    Raises:
        StateError: none has come to an end, a result is damaged, or two are of other data or other numbers of epochs.
    """
    paths = [path for folder in folders for path in Path(folder).rglob(RESULT)]
    found: dict[tuple[str, str, str, int], Trial] = {}
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime, path)):
        one = _read(path)
        first = next((earlier for earlier in found.values() if earlier.setting), one)
        for name in first.setting.keys() & one.setting.keys():
            if one.setting[name] != first.setting[name]:
                raise StateError(
                    f"errors are compared at the same {name}; '{path.parent}' has {one.setting[name]!r} and an earlier "
                    f"trial {first.setting[name]!r}: report them apart."
                )
        found[one.architecture.id, one.method, one.variant, one.seed] = one
    if not found:
        raise StateError("no trial of these experiments has come to an end; train one first.")
    return list(found.values())


def _read(path: Path) -> Trial:
    architecture = Architecture.load(path.with_name("architecture.json"))
    try:
        result = read_result(path)
        kept = path.with_name("settings.json")
        settings = read_json(kept) if kept.exists() else {}
        metric, value = judged(result)
        if metric != ACCURACY:
            raise ValueError(f"it is judged by {metric}")
        teacher = result.get(f"teacher_{metric.key}")
        return Trial(
            method=result.get("method", BLOCKSWAP),
            variant=result.get("variant", architecture.id),
            seed=(settings or result).get("seed", 0),
            architecture=architecture,
            params=result["params"],
            error=100 * (1 - value),
            teacher_error=None if teacher is None else 100 * (1 - teacher),
            setting={name: settings[name] for name in COMPARABLE if name in settings and not result.get("own_kind")},
            own_kind=result.get("own_kind", False),
            in_comparison="variant" in result,
        )
    except (KeyError, TypeError, ValueError, AttributeError, StateError) as error:
        raise StateError(
            f"'{path}' is no result of a classification trial ({error!r}); leave its folder out."
        ) from error


def points(trials: Iterable[Trial]) -> list[Point]:
    """Trials by method and variant: methods in order of appearance, each from fewest parameters to most."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for one in trials:
        groups.setdefault((one.method, one.variant), []).append(one)
    methods = list(dict.fromkeys(method for method, _ in groups))
    found = [Point(*key, tuple(group)) for key, group in groups.items()]
    return sorted(found, key=lambda point: (methods.index(point.method), point.params))


def teacher_point(trials: Sequence[Trial]) -> Point | None:
    """The teachers as one point, one trial each; None where no trial had one."""
    taught = [one for one in trials if one.teacher_error is not None and not one.own_kind]
    students = [one for one in taught if one.method != REDUCED] or taught  # a reduced original is of another space
    if not students:
        return None
    original = students[0].architecture.teacher()
    errors = dict.fromkeys(one.teacher_error for one in taught if one.teacher_error is not None)
    teachers = [Trial(TEACHER, "", 0, original, original.params, error, None) for error in errors]
    return Point(TEACHER, "", tuple(teachers))
