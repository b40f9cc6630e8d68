"""The tuner's classArgs: from what stands in an nnictl config to the settings of a search."""

import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from nni_blockswap.blocks.nni_format import from_nni
from nni_blockswap.errors import BlockSwapError, ConfigError, shown
from nni_blockswap.files import expanded
from nni_blockswap.finite import is_finite
from nni_blockswap.library.choosing import LISTED
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.methods import METHODS
from nni_blockswap.methods.halving import rungs
from nni_blockswap.ranges import check_count
from nni_blockswap.searching import SearchSettings
from nni_blockswap.spaces import cost_table, with_space
from nni_blockswap.studies.comparison import Comparison


def read_settings(arguments: Mapping[str, Any], search_space: Any, base: Path) -> tuple[SearchSettings, int]:
    """Search settings and number of students from a tuner's classArgs.

    Args:
        arguments: classArgs.
        search_space: the candidates, in NNI's format.
        base: what a relative ``data_root`` or ``library`` is relative to.

    Raises:
        ConfigError: an argument is unknown, missing or of the wrong type; the first such fault.
    """
    faults = argument_faults(arguments)
    if faults:
        raise ConfigError(faults[0])
    settings = with_space(arguments)
    students, budget = settings.pop("students", 3), settings.pop("budget")
    settings.pop("comparison", None)
    check_count("students", students)
    if isinstance(settings.get("library"), Mapping):  # one that is built first
        settings["library"] = settings["library"].get("folder")
    for name in ("data_root", "library"):
        if settings.get(name) is not None:
            settings[name] = str(base / expanded(settings[name]))
    found = SearchSettings(budgets=[str(budget)], candidates=from_nni(search_space), **settings)
    if not arguments.get("comparison"):
        _check_ranked(found, students)
    return found, students


def _check_ranked(settings: SearchSettings, students: int) -> None:
    """Raise ConfigError where fewer architectures are ranked than there are to be students."""
    ranked, _ = rungs(settings.samples, settings.inits)[-1]
    if settings.method == "halving" and ranked < students:
        raise ConfigError(
            f"halving ranks {ranked} of {settings.samples} samples, and {students} students are asked for; "
            "raise samples."
        )
    if settings.library is None and settings.method in METHODS and settings.samples < students:
        raise ConfigError(f"samples is {settings.samples}, and {students} students are asked for; raise samples.")
    listed = min(settings.samples, LISTED)
    if settings.library is not None and listed < students:
        raise ConfigError(
            f"a library ranks {listed} architectures, and {students} students are asked for; lower students and "
            f"maxTrialNumber{'' if listed == LISTED else f', or raise samples, to at most {LISTED}'}."
        )


def argument_faults(arguments: Mapping[str, Any], who: str = "the tuner", where: str = "classArgs") -> list[str]:
    """A sentence for each argument of ``who``, given in ``where``, that is unknown, missing or of the wrong type."""
    kinds, wrong = _kinds(), wrong_types(arguments, who)
    unknown = [
        f"{who} has no argument '{name}'; it has {', '.join(kinds)}."
        for name in arguments
        if name not in kinds and name not in wrong
    ]
    needed = {one.name for one in fields(SearchSettings) if one.default is one.default_factory is MISSING}
    missing = [
        f"{who}'s argument '{name}' is missing; add it to {where}."
        for name in sorted((needed & kinds.keys() | {"budget"}) - arguments.keys())
        if name != "space" or "model" not in arguments
    ]
    inner = [] if wrong else _library_faults(arguments, who) + _comparison_faults(arguments)
    return unknown + missing + list(wrong.values()) + inner


def wrong_types(arguments: Mapping[Any, Any], who: str = "the tuner") -> dict[Any, str]:
    """By name, a sentence for each argument of ``who`` that is none by its type."""
    return _wrong_types(arguments, _kinds(), f"{who}'s argument ")


def _wrong_types(arguments: Mapping[Any, Any], kinds: Mapping[str, Any], before: str) -> dict[Any, str]:
    """Sentences that name an argument by ``before`` and its name."""
    return {
        name: f"{before}{name} is {spell(kind)}, not {_given(value, kind)}."
        for name, value, kind in ((name, value, kinds.get(name, str)) for name, value in arguments.items())
        if not isinstance(name, str) or (name in kinds and not fits(value, kind))
    }


def _given(value: object, kind: Any) -> str:
    """A value in a sentence; of a number that YAML takes for text, as it does 1e-2, how it takes it for one."""
    for number in (int, float):
        with suppress(ValueError):
            if isinstance(value, str) and fits(number(value), kind):
                return f"{shown(value)}, which YAML takes for text; write {number(value)}"
    return shown(value)


def _kinds() -> dict[str, Any]:
    """The types of all classArgs; those of ``SearchSettings`` that the tuner calls otherwise are left out."""
    kinds = {
        name: kind for name, kind in get_type_hints(SearchSettings).items() if name not in ("budgets", "candidates")
    }
    kinds |= {"budget": str | int, "students": int, "comparison": dict, "library": str | dict}
    return kinds | {"model": str, "model_args": dict, "input_size": list, "include": str | list, "exclude": str | list}


def _library_faults(arguments: Mapping[str, Any], who: str) -> list[str]:
    """Wrong types in a library that is built first; see ``training.schooling``."""
    library = arguments.get("library")
    kinds = {**get_type_hints(LibrarySettings), "folder": str, "teacher": str | dict}
    before = f"{who}'s argument library."
    return list(_wrong_types(library, kinds, before).values()) if isinstance(library, dict) else []


def _comparison_faults(arguments: Mapping[str, Any]) -> list[str]:
    comparison, students = arguments.get("comparison"), arguments.get("students", 3)
    if not isinstance(comparison, dict) or not isinstance(students, int):
        return []
    try:
        compared = Comparison.read(comparison)
        size = compared.size(_blocks(arguments) if compared.one_swap else 0)
    except BlockSwapError as error:
        return [str(error)]
    too_many = (
        f"the comparison has {size} trials and students is {students}; set students and maxTrialNumber to {size}."
    )
    return [too_many] if students > size else []


def _blocks(arguments: Mapping[str, Any]) -> int:
    return len(cost_table(arguments["space"], arguments.get("space_args")).labels) if "space" in arguments else 0


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config is of the type ``hint``: numbers finite, names in mappings text, sequences lists."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    kind = get_origin(hint) or hint
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool) and is_finite(value)
    if kind is Sequence:
        return isinstance(value, list) and all(fits(part, get_args(hint)[0]) for part in value)
    if isinstance(value, Mapping):
        return isinstance(value, kind) and all(isinstance(name, str) for name in value)
    return isinstance(value, kind)


def spell(hint: Any) -> str:
    """The type in a sentence."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(spell(part) for part in get_args(hint))
    names = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
        list: "a list",
        Sequence: "a list",
    }
    return names.get(get_origin(hint) or hint, "a mapping of names to values")
