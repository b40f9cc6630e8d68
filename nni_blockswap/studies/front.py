"""The front: the best that a space has at each of many budgets, from one run.

Weights, minibatches and scores are shared, so that a score at one budget compares with one at another. Of everything
that was scored, an architecture is on the front if no other has a score as good at costs as low, and one of them
better.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nni_blockswap.architecture import Architecture
from nni_blockswap.conversation import OnProgress, unheard
from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.resources import unit_of
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import BudgetError
from nni_blockswap.library import choosing
from nni_blockswap.library.library import Library
from nni_blockswap.results.ranking import Ranking
from nni_blockswap.results.tables import write_csv, write_figure
from nni_blockswap.scoring.proxies.combination import is_high_good, parts, scores_of
from nni_blockswap.searching import SearchSettings, score, search, table_of
from nni_blockswap.spaces import complete_args

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONT_TABLE = "front.csv"
TEACHER = "teacher"

_RANGE = re.compile(r"(?:(?P<resource>[\w.:]+)=)?(?P<low>[\w.%]+?)\.\.(?P<high>[\w.%]+)")


@dataclass(frozen=True)
class Front:
    """What a run found.

    Attributes:
        architectures: that are on the front, cheapest first.
        chosen: the best that meets each budget, of all that were scored, by the budget's text.
        everything: all that was scored within the budgets.
        teacher: with its score.
        single: by substitute, the network that has it in every block, with its score.
        proxy: what the scores are.
    """

    architectures: tuple[Architecture, ...]
    chosen: dict[str, Architecture]
    everything: tuple[Architecture, ...]
    teacher: Architecture
    single: dict[str, Architecture]
    proxy: str


def spaced(text: str, points: int) -> list[str]:
    """``points`` budgets of one resource, evenly from one to the other, both included.

    Raises:
        BudgetError: it is no range, or has fewer than two points.

    Example:
        >>> spaced("10%..30%", 3), spaced("macs=50M..80M", 2)
        (['10%', '20%', '30%'], ['macs=50M', 'macs=80M'])
    """
    match = _RANGE.fullmatch("".join(text.split()))
    if match is None or points < 2:
        raise BudgetError(f"'{text}' with {points} points is no range; write 10%..60% or macs=50M..90M, and 2 or more.")
    prefix = f"{match['resource']}=" if match["resource"] else ""
    (name, low), (_, high) = (Budget.parse(prefix + match[end]).limits[0] for end in ("low", "high"))
    if type(low) is not type(high) or low >= high:
        raise BudgetError(f"'{text}' is no range from a lower to a higher budget of one kind; write 10%..60%, say.")
    figures = [low + (high - low) * step / (points - 1) for step in range(points)]
    kept = [round(one, 4) if isinstance(low, float) else round(one) for one in figures]
    return [Budget(at_most=True, **{name: one}).figures for one in kept]


def front(settings: SearchSettings, out: str | Path, on_progress: OnProgress = unheard) -> Front:
    """Search all budgets of ``settings``; write ``out``/front.csv and front.png beside the rankings.

    Raises:
        BlockSwapError: as ``search`` does.
    """
    rankings = search(settings, out, on_progress)
    higher = settings.library is None and is_high_good(settings.proxy)
    known = {one.id: one for ranking in rankings for one in ranking.top(len(ranking.architectures))}
    references = _references(settings, out)
    if settings.library is None and len(parts(settings.proxy)) > 1:
        ranked = _ranked_together(settings.proxy, [*known.values(), *references.values()])
        known = dict(zip(known, ranked, strict=False))
        references = dict(zip(references, ranked[len(known) :], strict=True))
    table = table_of(settings)
    found = Front(
        tuple(nondominated(list(known.values()), higher)),
        {
            str(text): _best(known.values(), budget, table, higher)
            for text, budget in zip(settings.budgets, settings.parsed(), strict=True)
        },
        tuple(known.values()),
        references.pop(TEACHER),
        references,
        settings.proxy,
    )
    write_csv(Path(out) / FRONT_TABLE, _rows(found))
    write_figure(Path(out) / "front.png", draw(found))
    return found


def _best(architectures: Iterable[Architecture], budget: Budget, table: Table, higher_is_better: bool) -> Architecture:
    """Of all that were scored, whatever budget they were meant for, the best that meets ``budget``."""
    meet = [one for one in architectures if budget.admits(table, one.costs)]
    return Ranking.of("", meet, higher_is_better=higher_is_better).best


def nondominated(architectures: Sequence[Architecture], higher_is_better: bool) -> list[Architecture]:
    """Those that no other is at least as good as in score and in every cost, and better in one."""
    sign = -1.0 if higher_is_better else 1.0
    points = np.array([[sign * (one.score or 0.0), *one.costs.values()] for one in architectures])
    kept = [
        one
        for one, point in zip(architectures, points, strict=True)
        if not ((points <= point).all(axis=1) & (points < point).any(axis=1)).any()
    ]
    return sorted(kept, key=lambda one: list(one.costs.values()))


def _references(settings: SearchSettings, out: str | Path) -> dict[str, Architecture]:
    """The teacher, and the networks with one substitute throughout, scored like the others."""
    table = table_of(replace(settings, candidates=None))
    common = [name for name in table.candidates[0] if all(name in names for names in table.candidates)]
    rows = {name: table.index([name] * len(table.labels)) for name in common}
    rows = {TEACHER: table.original(), **{name: row for name, row in rows.items() if row != table.original()}}
    choices = [table.names(row) for row in rows.values()]
    if settings.library is not None:
        columns = {settings.proxy: choosing.sums(Library.load(settings.library), settings.proxy, table, choices)}
    else:
        columns = _scores(settings, choices, Path(out))
    arguments = complete_args(settings.space, settings.space_args)
    found = {}
    for position, (name, row) in enumerate(rows.items()):
        scores = {proxy: column[position] for proxy, column in columns.items()}
        one = Architecture.from_indices(settings.space, arguments, table, row)
        found[name] = one.scored(next(iter(scores.values())), {"scores": scores})
    return found


def _scores(settings: SearchSettings, choices: Sequence[Mapping[str, str]], out: Path) -> dict[str, list[float]]:
    """By proxy; each part of a combination keeps its own where the search by it does."""
    names = parts(settings.proxy)
    homes = {name: out / name if len(names) > 1 else out for name in names}
    return {
        name: [one.value for one in score(replace(settings, proxy=name), choices, home)] for name, home in homes.items()
    }


def _ranked_together(proxy: str, architectures: Sequence[Architecture]) -> list[Architecture]:
    """All of these with scores by a combination that compare: places among them all, not at one budget."""
    known = [one.provenance["scores"] for one in architectures]
    columns = {name: [scores[name] for scores in known] for name in parts(proxy)}
    ranked = zip(architectures, scores_of(proxy, columns), strict=True)
    return [one.scored(value, one.provenance) for one, value in ranked]


def _labels(found: Front) -> dict[str, str]:
    """By id, the budgets that an architecture is the best of."""
    labels: dict[str, str] = {}
    for budget, one in found.chosen.items():
        labels[one.id] = f"{labels[one.id]} {budget}" if one.id in labels else budget
    return labels


def _rows(found: Front) -> list[list[object]]:
    labels, first = _labels(found), found.teacher
    on_front = {one.id for one in found.architectures}
    beaten = {one.id: one for one in found.chosen.values() if one.id not in on_front}  # by one that costs less
    named = [
        *((labels.get(one.id, ""), one) for one in (*found.architectures, *beaten.values())),
        (TEACHER, found.teacher),
        *((f"{name} in every block", one) for name, one in found.single.items()),
    ]
    rows: list[list[object]] = [["network", "score", *first.costs, *first.choices, "id"]]
    rows += [[name, one.score, *one.costs.values(), *one.choices.values(), one.id] for name, one in named]
    return rows


def draw(found: Front) -> "Figure":
    """Score against each cost: all that was scored, the front, the best at each budget, teacher and single types."""
    from matplotlib.figure import Figure

    labels, resources = _labels(found), list(found.teacher.costs)
    best = list({one.id: one for one in found.chosen.values()}.values())
    texts = [*((labels[one.id], one) for one in best), *found.single.items()]
    figure = Figure(figsize=(6.0 * len(resources), 4.8), layout="constrained")
    for axes, name in zip(np.ravel(figure.subplots(1, len(resources), sharey=True)), resources, strict=True):
        for ones, style, size, label in (
            (found.everything, {"marker": "o", "color": "lightgray"}, 6, f"{len(found.everything)} scored"),
            (list(found.single.values()), {"marker": "^", "color": "C2"}, 24, "one substitute in every block"),
            (found.architectures, {"marker": "o", "color": "C0"}, 12, "front"),
            (best, {"marker": "o", "color": "C3"}, 30, "best that meets a budget"),
            ([found.teacher], {"marker": "*", "color": "black"}, 90, "teacher"),
        ):
            axes.scatter([one.costs[name] for one in ones], [one.score for one in ones], s=size, label=label, **style)
        for text, one in texts:
            axes.annotate(text, (one.costs[name], one.score), xytext=(3, 4), textcoords="offset points", fontsize=6)
        axes.set_xlabel(unit_of(name))
        axes.set_xscale("log")
    figure.axes[0].set_ylabel(found.proxy)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def draw_errors(rows: Sequence[Sequence[Any]], teacher: float | None) -> "Figure":
    """Error in percent against each cost, of those in a front's table that were trained.

    Args:
        rows: of front.csv with a column ``error`` behind ``score``, its head first.
        teacher: the teacher's error, if it is known.
    """
    from matplotlib.figure import Figure

    head, *lines = rows
    first = head.index("error") + 1
    resources = list(takewhile(lambda name: not name.startswith("block_") and name != "id", head[first:]))
    trained = [line for line in lines if line[first - 1] is not None]
    figure = Figure(figsize=(6.0 * len(resources), 4.8), layout="constrained")
    for place, axes in enumerate(np.ravel(figure.subplots(1, len(resources), sharey=True)), start=first):
        costs, errors = [int(line[place]) for line in trained], [line[first - 1] for line in trained]
        axes.scatter(costs, errors, color="C3", s=30, label="trained")
        for line, cost, error in zip(trained, costs, errors, strict=True):
            axes.annotate(line[0], (cost, error), xytext=(3, 4), textcoords="offset points", fontsize=6)
        if teacher is not None:
            axes.axhline(teacher, color="black", linestyle="--", label="teacher")
        axes.set_xlabel(unit_of(head[place]))
    figure.axes[0].set_ylabel("error in percent")
    figure.axes[0].legend(fontsize=8)
    return figure
