"""Architectures and rankings as pictures and as text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nni_blockswap.architecture import Architecture
from nni_blockswap.results.ranking import Ranking
from nni_blockswap.spaces import cost_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 30  # of the longest bar, in characters
_BEST = 0.1
_SHOWN, _UNITS = ("params", "macs"), ("parameters", "MACs")


def by_block(one: Architecture, resource: str) -> list[int]:
    """What each block's branch takes of ``resource``, params or macs."""
    table = cost_table(one.space, one.space_args)
    return [
        int(costs[index]) for costs, index in zip(table.column(resource).costs, table.index(one.choices), strict=True)
    ]


def text(one: Architecture) -> str:
    """A line a block: its choice, and the parameters of its branch as a bar; the teacher's in light shade behind."""
    original = one.teacher()
    own, teachers = by_block(one, "params"), by_block(original, "params")
    longest = max(map(len, one.choices.values()))
    lines = []
    for (label, choice), mine, whole in zip(one.choices.items(), own, teachers, strict=True):
        full, kept = (round(_WIDTH * cost / max(*teachers, *own)) for cost in (whole, mine))
        bar = "█" * max(kept, 1) + "░" * (full - max(kept, 1))
        lines.append(f"{label}  {choice:<{longest}}  {bar:<{_WIDTH}}  {mine:>11,} of {whole:,}")
    together = ", ".join(f"{one.costs[name] / original.costs[name]:.1%} of the teacher's {name}" for name in _SHOWN)
    return "\n".join([*lines, f"{one.spelled_costs}: {together}"])


def picture(one: Architecture) -> "Figure":
    """Teacher and student side by side: a pair of bars a block, a panel a resource."""
    from matplotlib.figure import Figure

    original, places = one.teacher(), np.arange(len(one.choices))
    figure = Figure(figsize=(max(6.0, 0.45 * len(places)), 5.5), layout="constrained")
    for axes, resource, unit in zip(figure.subplots(2, 1, sharex=True), _SHOWN, _UNITS, strict=True):
        axes.bar(places - 0.2, by_block(original, resource), 0.4, color="lightgray", label="teacher")
        axes.bar(places + 0.2, by_block(one, resource), 0.4, color="C0", label="student")
        axes.set_ylabel(f"{unit} of the branch")
        share = one.costs[resource] / original.costs[resource]
        axes.set_title(f"{one.costs[resource]:,} {unit}, {share:.1%} of the teacher's {original.costs[resource]:,}")
    figure.axes[0].legend()
    names = [f"{label.removeprefix('block_')} {choice}" for label, choice in one.choices.items()]
    figure.axes[1].set_xticks(places, names, rotation=90)
    return figure


def preferences(ranking: Ranking) -> "Figure":
    """Per block, how much more often the best tenth has a substitute than the rest has it (section 4.4, Figure 5).

    A cell is the share of the best tenth with the substitute in this block, less its share in the other nine tenths.
    Beside it what the branches of each stage take, on average over the best and over the rest, and in the teacher.
    """
    from matplotlib.figure import Figure

    finite = ranking.top(len(ranking.architectures))
    best = finite[: max(round(_BEST * len(finite)), 1)]
    rest = finite[len(best) :] or best
    labels = list(finite[0].choices)
    names = list(dict.fromkeys(sorted((name for one in finite for name in one.choices.values()), key=_order)))
    cells = shares(best, names) - shares(rest, names)
    height = max(4.0, 0.22 * len(names) + 1.5)
    figure = Figure(figsize=(max(6.0, 0.45 * len(labels)) + 3.5, height), layout="constrained")
    panels = figure.subplot_mosaic([["chosen", one] for one in _SHOWN], width_ratios=[2, 1])
    axes = panels["chosen"]
    shown = axes.imshow(cells, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(f"{ranking.budget}: the best {len(best)} against the other {len(finite) - len(best)}")
    figure.colorbar(shown, ax=axes, label="share in the best less share in the rest")
    for resource, unit in zip(_SHOWN, _UNITS, strict=True):
        _draw_spent(panels[resource], {"best": best, "rest": rest, "teacher": [best[0].teacher()]}, resource)
        panels[resource].set_ylabel(f"{unit} of the branches")
    panels[_SHOWN[0]].legend(fontsize=7)
    panels[_SHOWN[-1]].set_xlabel("width of the stage")
    return figure


def _draw_spent(axes: "Axes", groups: Mapping[str, Sequence[Architecture]], resource: str) -> None:
    for place, (name, color) in enumerate(zip(groups, ("C3", "C0", "lightgray"), strict=True)):
        found = spent(groups[name], resource)
        axes.bar(np.arange(len(found)) + 0.27 * (place - 1), [cost for _, cost in found], 0.27, color=color, label=name)
    axes.set_xticks(range(len(found)), [str(width) for width, _ in found])


def spent(architectures: Sequence[Architecture], resource: str) -> list[tuple[int, float]]:
    """(width, what its branches take on average) of each stage: blocks in a row that give equally many channels."""
    first = architectures[0]
    sites: Sequence[Any] = cost_table(first.space, first.space_args).sites
    costs = np.mean([by_block(one, resource) for one in architectures], axis=0)
    blocks = groupby(zip(sites, costs, strict=True), key=lambda block: block[0].out_channels)
    return [(width, float(sum(cost for _, cost in stage))) for width, stage in blocks]


def shares(architectures: Sequence[Architecture], names: Sequence[str]) -> NDArray[np.float64]:
    """(names, blocks): how often each stands in each block, from 0 to 1."""
    found = np.zeros((len(names), len(architectures[0].choices)))
    for block, label in enumerate(architectures[0].choices):
        counts = Counter(one.choices[label] for one in architectures)
        found[:, block] = [counts[name] / len(architectures) for name in names]
    return found


def _order(name: str) -> tuple[str, list[int], str]:
    """Families together, and in them by number: G(2), G(4), G(16)."""
    family, _, arguments = name.partition("(")
    numbers = [int(digits) for digits in "".join(c if c.isdigit() else " " for c in arguments).split()]
    return family, numbers, name
