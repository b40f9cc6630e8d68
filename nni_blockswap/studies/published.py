"""A run's figures beside the paper's: its Tables 2, 3, 4 and that of appendix C, with the difference.

The paper's are in published.yml, beside this file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.files import write_text
from nni_blockswap.results.tables import markdown, write_csv
from nni_blockswap.results.trial import ARCHITECTURE, read_result, results_below
from nni_blockswap.studies.trials import BLOCKSWAP, TEACHER, recipe_of, settings_beside, told_apart, which_teacher

TABLES = ("2", "3", "4", "C")
ERROR, TOP5_ERROR = "error", "top5_error"

CLOSE = 0.06
"""Networks of one method are compared where their shares of the original's parameters differ by at most this share."""


@dataclass(frozen=True)
class Row:
    """A method's network, in the paper or, as the mean over its trials, in a run.

    Attributes:
        method, variant: see ``comparison.contestants``; without a variant it goes by its size.
        share: its parameters, in those of the original; None where the paper does not say.
        figures: in percent, by name.
        spread: standard deviation of the first figure; None where there is none.
    """

    method: str
    variant: str
    params: float | None
    macs: float | None
    share: float | None
    figures: Mapping[str, float]
    spread: float | None = None
    trials: int = 1


@dataclass(frozen=True)
class Table:
    """One of the paper's tables; ``figures`` are their titles by name, the first the one that is compared."""

    title: str
    source: str
    figures: Mapping[str, str]
    rows: tuple[Row, ...] = field(repr=False)


@cache
def content() -> dict[str, Any]:
    """All that published.yml holds."""
    found: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("published.yml").read_text(encoding="utf-8"))
    return found


def published(name: str) -> Table:
    """The paper's table ``name``.

    Raises:
        ConfigError: there is none of that name.

    Example:
        >>> published("3").rows[0].figures
        {'error': 26.73, 'top5_error': 8.57}
    """
    if name not in TABLES:
        raise ConfigError(f"the paper's figures are known of its tables {', '.join(TABLES)}, not of '{name}'.")
    everything = content()
    table = everything["tables"][name]
    original = table.get("original", everything["original"])
    return Table(
        table["title"], table["source"], table["figures"], tuple(_row(one, table, original) for one in table["rows"])
    )


def _row(one: Mapping[str, Any], table: Mapping[str, Any], original: int) -> Row:
    params = one.get("params")
    figures = {name: one[name] for name in table["figures"]}
    share = None if params is None else params / original
    return Row(one["method"], one.get("variant", ""), params, one.get("macs"), share, figures, one.get("spread"))


def read_rows(folders: Iterable[str | Path], table: Table) -> list[Row]:
    """The trials below ``folders`` that have the figures of ``table``, a row a method and variant.

    Raises:
        StateError: there is none, or a result is damaged.
    """
    found: dict[str, tuple[Architecture, dict[str, Any]]] = {}
    for path in results_below(folders):  # of two of the same the later stays
        architecture, result = _read(path)
        if table.figures.keys() <= result.keys():
            named = [result[name] for name in ("method", "variant", "seed", "recipe")]
            found[json.dumps([architecture.id, *named], sort_keys=True)] = architecture, result
    variants = told_apart([(one["method"], one["variant"], one["recipe"]) for _, one in found.values()])
    groups: dict[tuple[str, str], list[tuple[Architecture, dict[str, Any]]]] = {}
    for (architecture, result), variant in zip(found.values(), variants, strict=True):
        groups.setdefault((result["method"], variant), []).append((architecture, result))
    if not groups:
        raise StateError(f"no trial here has {', '.join(table.figures)}, as '{table.title}' wants; train one first.")
    rows = [_mean(*named, trials, table) for named, trials in groups.items()]
    return rows + _teacher([trial for trials in groups.values() for trial in trials])


def _read(path: Path) -> tuple[Architecture, dict[str, Any]]:
    architecture = Architecture.load(path.with_name(ARCHITECTURE))
    try:
        settings = settings_beside(path)
        result = {
            "method": BLOCKSWAP,
            "variant": architecture.id,
            "seed": settings.get("seed", 0),
            **read_result(path),
        }
        result["recipe"] = recipe_of(architecture, settings)
        result |= {name: 100 * value for name, value in result.items() if name.startswith("box_")}
        for error, accuracy in ((ERROR, "accuracy"), (TOP5_ERROR, "top5")):
            if accuracy in result:
                result[error] = 100 * (1 - result[accuracy])
        return architecture, result
    except (TypeError, ValueError) as error:
        raise StateError(f"'{path}' is no trial's result ({error!r}); leave its folder out.") from error


def _mean(method: str, variant: str, trials: Sequence[tuple[Architecture, dict[str, Any]]], table: Table) -> Row:
    params = mean(result["params"] for _, result in trials)
    first = [result[next(iter(table.figures))] for _, result in trials]
    return Row(
        method,
        variant,
        params,
        mean(architecture.macs for architecture, _ in trials),
        params / trials[0][0].teacher().params,
        {name: mean(result[name] for _, result in trials) for name in table.figures},
        stdev(first) if len(first) > 1 else None,
        len(first),
    )


def _teacher(trials: Sequence[tuple[Architecture, dict[str, Any]]]) -> list[Row]:
    """The original network, as far as trials were taught by it."""
    taught = [one for one in trials if "teacher_accuracy" in one[1] and not one[1].get("own_kind")]
    if not taught:
        return []
    original = max((architecture.teacher() for architecture, _ in taught), key=lambda one: one.params)
    errors = {
        which_teacher(one["recipe"], one["seed"], one["teacher_accuracy"]): 100 * (1 - one["teacher_accuracy"])
        for _, one in taught
    }
    return [Row(TEACHER, "", original.params, original.macs, 1.0, {ERROR: mean(errors.values())})]


def beside(table: Table, run: Sequence[Row]) -> list[tuple[Row | None, Row | None]]:
    """Pairs of the paper's rows and the run's, in the paper's order, then what only the run has.

    Of one method those with the same variant belong together, else those of the closest size, if it is close.
    """
    left = list(run)
    pairs: list[tuple[Row | None, Row | None]] = []
    for row in table.rows:
        found = min((one for one in left if _belong(row, one)), key=partial(_apart, row), default=None)
        if found is not None:
            left.remove(found)
        pairs.append((row, found))
    return pairs + [(None, one) for one in left]


def _belong(row: Row, one: Row) -> bool:
    if row.method != one.method:
        return False
    return one.variant == row.variant or (not row.variant and _apart(row, one) <= CLOSE)


def _apart(row: Row, one: Row) -> float:
    if row.share is None or one.share is None:
        return 0.0
    return abs(one.share / row.share - 1)


def lay_beside(name: str, folders: Iterable[str | Path], out: str | Path) -> str:
    """Write ``out``/table_``name``.md and .csv: the run's figures, the paper's, the difference.

    Returns:
        The table in Markdown.

    Raises:
        BlockSwapError: no such table, no trials.
    """
    table = published(name)
    rows = _cells(table, beside(table, read_rows(folders, table)))
    write_csv(Path(out) / f"table_{name}.csv", rows)
    text = markdown(rows)
    write_text(
        Path(out) / f"table_{name}.md",
        f"{table.title}. The run's figures, the paper's ({table.source}), and by how much the run's are higher.\n\n"
        f"{text}\n",
    )
    return text


def _cells(table: Table, pairs: Sequence[tuple[Row | None, Row | None]]) -> list[list[str]]:
    first, *others = table.figures
    header = ["method", "variant", "trials", "params", "paper", "MACs", "paper"]
    header += [table.figures[first], "paper", "difference"]
    for name in others:
        header += [table.figures[name], "paper"]
    rows = [header]
    for paper, own in pairs:
        named = own or paper
        assert named is not None
        cells = [named.method, named.variant, "" if own is None else str(own.trials)]
        cells += [_count(side.params if side else None) for side in (own, paper)]
        cells += [_count(side.macs if side else None) for side in (own, paper)]
        cells += [_spread(own, first), _spread(paper, first), _difference(own, paper, first)]
        for name in others:
            cells += [_figure(side, name) for side in (own, paper)]
        rows.append(cells)
    return rows


def _figure(side: Row | None, name: str) -> str:
    """Nothing for COCO's -1, which says that there is no object of that size."""
    value = side.figures.get(name, -1.0) if side else -1.0
    return f"{value:.2f}" if value >= 0 else ""


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _spread(row: Row | None, name: str) -> str:
    if row is None:
        return ""
    return f"{row.figures[name]:.2f}" + ("" if row.spread is None else f" ± {row.spread:.2f}")


def _difference(own: Row | None, paper: Row | None, name: str) -> str:
    return f"{own.figures[name] - paper.figures[name]:+.2f}" if own and paper else ""
