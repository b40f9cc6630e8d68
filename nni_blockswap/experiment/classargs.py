"""The tuner's classArgs: from what stands in an nnictl config to the settings of a search."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from nni_blockswap.architecture import cost_table, with_space
from nni_blockswap.blocks.nni_format import from_nni
from nni_blockswap.errors import BlockSwapError, ConfigError
from nni_blockswap.scoring.settings import check_count
from nni_blockswap.searching import SearchSettings
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
            settings[name] = str(base / Path(settings[name]).expanduser())
    return SearchSettings(budgets=[str(budget)], candidates=from_nni(search_space), **settings), students


def argument_faults(arguments: Mapping[str, Any]) -> list[str]:
    """A sentence for each classArg that is unknown, missing or of the wrong type."""
    own = {"budgets", "candidates"}  # the tuner's are called budget, and searchSpace
    hints = {name: hint for name, hint in get_type_hints(SearchSettings).items() if name not in own}
    hints |= {"budget": str | int, "students": int, "comparison": dict, "library": str | dict}
    hints |= {"model": str, "model_args": dict, "input_size": list, "include": str | list, "exclude": str | list}
    needed = {one.name for one in fields(SearchSettings) if one.default is one.default_factory is MISSING} - own | {
        "budget"
    }
    unknown = [
        f"the tuner has no argument '{name}'; it has {', '.join(hints)}." for name in arguments.keys() - hints.keys()
    ]
    missing = [
        f"the tuner's argument '{name}' is missing; add it to classArgs."
        for name in sorted(needed - arguments.keys())
        if name != "space" or "model" not in arguments
    ]
    wrong = [
        f"the tuner's argument {name} is {_spell(hints[name])}, not {value!r}."
        for name, value in arguments.items()
        if name in hints and not _fits(value, hints[name])
    ]
    return unknown + missing + wrong + _comparison_faults(arguments)


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


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    kind = get_origin(hint) or hint
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _spell(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_spell(part) for part in get_args(hint))
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(hint, "a mapping")
