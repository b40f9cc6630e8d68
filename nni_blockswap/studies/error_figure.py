"""Error against what a network costs: parameters, MACs and latency, a panel each (the paper's Figure 3)."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from nni_blockswap.architecture import Architecture
from nni_blockswap.spaces import NETWORK
from nni_blockswap.studies.latency import Timing
from nni_blockswap.studies.trials import REDUCED, TEACHER, Point, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(compared: Sequence[Point], latencies: Mapping[str, Timing], title: str) -> "Figure":
    """A panel a cost; the teacher as a star and a line.

    Methods of a comparison are curves over their budgets or settings. Students of one search have one budget, and a
    line between them would say that it is their parameters that make them good: they are points, each labelled.

    Args:
        compared: at least one point.
        latencies: by architecture id; where there are none, there is no panel.
    """
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[Point], float]] = {
        "parameters that are not zero (thousands)": lambda point: point.params / 1e3,
        "MACs (millions)": lambda point: point.macs / 1e6,
    }
    if latencies:
        panels["latency on this machine (ms)"] = lambda point: 1e3 * latencies[point.trials[0].architecture.id].mean
    drawn = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    row = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, cost) in zip(row, panels.items(), strict=True):
        costs = [cost(point) for point in compared]
        room = 0.05 * (max(costs) - min(costs) or max(costs))
        axes.set_xlim(min(costs) - room, max(costs) + room)
        for method in dict.fromkeys(point.method for point in compared):
            _draw(axes, method, [point for point in compared if point.method == method], cost)
        axes.set_xlabel(name)
    drawn.axes[0].set_ylabel("validation error (%)")
    drawn.axes[0].legend(fontsize=8)
    drawn.suptitle(title, fontsize=10)
    return drawn


def _draw(axes: "Axes", method: str, found: Sequence[Point], cost: Callable[[Point], float]) -> None:
    if method == TEACHER:
        (teacher,) = found
        axes.axhline(teacher.error, color="black", linestyle="--", linewidth=1)
        axes.plot(cost(teacher), teacher.error, color="black", marker="*", markersize=9, linestyle="", label=TEACHER)
        return
    curve = sorted(found, key=cost)
    axes.errorbar(
        [cost(point) for point in curve],
        [point.error for point in curve],
        yerr=[point.spread or 0.0 for point in curve],
        label=method,
        marker="o",
        markersize=4,
        linewidth=1,
        linestyle="-" if all(point.trials[0].in_comparison for point in curve) else "",
        capsize=3,
    )
    left, right = axes.get_xlim()
    side_by_side = sorted(curve, key=lambda point: (point.error, cost(point)))
    for number, point in enumerate(side_by_side):  # labels towards the middle, so that they stay in the panel
        aside, side = (4, "left") if cost(point) < (left + right) / 2 else (-4, "right")
        offset = aside, -9 if number % 2 else 4  # neighbours' on either side
        place = (cost(point), point.error)
        axes.annotate(_label(point), place, xytext=offset, textcoords="offset points", fontsize=6, ha=side)


def _label(point: Point) -> str:
    """Budget or setting; of a student of one search its rank and id."""
    rank = point.trials[0].architecture.provenance.get("rank")
    return point.variant if rank is None or point.trials[0].in_comparison else f"{rank}. {point.variant}"


def title_of(trials: Sequence[Trial]) -> str:
    """What was trained, on what, for how long: ``WideResNetSpace of 691,386 parameters on digits, 12 epochs``."""
    one = next((one for one in trials if one.method != REDUCED and not one.own_kind), trials[0])
    original, setting = one.architecture.teacher(), one.setting
    data = f" on {setting['data']}" if "data" in setting else ""
    epochs = f", {setting['epochs']} epochs" if "epochs" in setting else ""
    return f"{_name(original)} of {original.params:,} parameters{data}{epochs}"


def _name(architecture: Architecture) -> str:
    if architecture.space == NETWORK:
        return str(architecture.space_args["model"])
    return architecture.space.rpartition(":")[2]
