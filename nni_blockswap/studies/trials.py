"""Trials that came to an end, and points of a comparison: the mean and spread over a method's trials, one a seed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import StateError
from nni_blockswap.files import read_json
from nni_blockswap.metric import ACCURACY, judged
from nni_blockswap.results.trial import ARCHITECTURE, EPOCHS, EXTENDED, RUN, SETTINGS, read_result, results_below

BLOCKSWAP, REDUCED, TEACHER = "blockswap", "reduced", "teacher"
COMPARABLE = ("data", "data_options", EPOCHS)
"""What trials must have in common for their errors to be compared."""

_OF_ONE = (RUN, "architecture_id", "data_root", "seed", "nonzero")
"""Settings of one trial alone, or of the machine that it ran on."""

_BESIDE = ("teacher", "teacher_epochs", EXTENDED)
"""Settings that do not make another variant: a comparison has a teacher a seed, and a run may be made a longer one."""


@dataclass(frozen=True)
class Trial:
    """A training that came to an end.

    Attributes:
        method, variant, seed: see ``comparison.contestants``; outside a comparison ``blockswap`` and its id.
        params: those that are not zero.
        error: on the validation set after the last epoch, in percent.
        teacher_error: the same of its teacher, or None where it had none.
        setting: of ``COMPARABLE``, what its settings say.
        recipe: what else was trained how, see ``recipe_of``.
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
    recipe: Mapping[str, Any] = field(default_factory=dict)
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
    """The trials below ``folders``; of two of one architecture, method, variant, seed and recipe the later.

    Those of one method and variant whose recipes or spaces differ have what differs in their variants.

    Raises:
        StateError: none has come to an end, a result is damaged, or two are of other data or other numbers of epochs.
    """
    found: dict[tuple[str, str, str, int, str], Trial] = {}
    for path in results_below(folders):
        one = _read(path)
        first = next((earlier for earlier in found.values() if earlier.setting), one)
        for name in first.setting.keys() & one.setting.keys():
            if one.setting[name] != first.setting[name]:
                raise StateError(
                    f"errors are compared at the same {name}; '{path.parent}' has {one.setting[name]!r} and an earlier "
                    f"trial {first.setting[name]!r}: report them apart."
                )
        found[one.architecture.id, one.method, one.variant, one.seed, json.dumps(one.recipe, sort_keys=True)] = one
    if not found:
        raise StateError("no trial of these experiments has come to an end; train one first.")
    trials = list(found.values())
    variants = told_apart([(one.method, one.variant, one.recipe) for one in trials])
    return [replace(one, variant=variant) for one, variant in zip(trials, variants, strict=True)]


def settings_beside(result: Path) -> dict[str, Any]:
    """What the trial of a result was started with, as far as its folder says."""
    path = result.with_name(SETTINGS)
    return dict(read_json(path)) if path.exists() else {}


def recipe_of(architecture: Architecture, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What two trainings of one method and variant have in common where they differ by chance alone."""
    space = {"space": architecture.space, **architecture.space_args}
    return {**space, **{name: value for name, value in settings.items() if name not in (*_OF_ONE, *COMPARABLE)}}


def told_apart(named: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[str]:
    """The variant of each (method, variant, recipe), with what others of that method and variant have otherwise.

    Example:
        >>> told_apart([("blockswap", "30%", {"beta": 0}), ("blockswap", "30%", {"beta": 9}), ("snip", "30%", {})])
        ['30%, beta=0', '30%, beta=9', '30%']
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}  # teachers may be another each seed
    for method, variant, recipe in named:
        groups.setdefault((method, variant), []).append(recipe)
    return [", ".join([variant, *_apart(recipe, groups[method, variant])]) for method, variant, recipe in named]


def _apart(recipe: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{name}={value}"
        for name, value in recipe.items()
        if name not in _BESIDE and any(name in other and other[name] != value for other in others)
    ]


def _read(path: Path) -> Trial:
    architecture = Architecture.load(path.with_name(ARCHITECTURE))
    try:
        result = read_result(path)
        settings = settings_beside(path)
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
            recipe=recipe_of(architecture, settings),
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
    """The teachers as one point, one trial each: those of the first student's space. None where no trial had one."""
    students = taught(trials)
    if not students:
        return None
    original = students[0].architecture.teacher()
    errors = {
        which_teacher(one.recipe, one.seed, error): error
        for one in students
        if one.architecture.teacher().id == original.id and (error := one.teacher_error) is not None
    }
    teachers = [Trial(TEACHER, "", 0, original, original.params, error, None) for error in errors.values()]
    return Point(TEACHER, "", tuple(teachers))


def taught(trials: Iterable[Trial]) -> list[Trial]:
    """Trials whose teacher is the original of their space; reduced originals, of another space, where there is none."""
    found = [one for one in trials if one.teacher_error is not None and not one.own_kind]
    return [one for one in found if one.method != REDUCED] or found


def which_teacher(recipe: Mapping[str, Any], seed: int, error: float) -> tuple[object, ...]:
    """What two trials of one teacher have in common: its checkpoint or, where it was trained for them, the seed."""
    given = recipe.get("teacher")
    return error, given, seed if given is None else None
