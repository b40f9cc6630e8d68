"""The paper's figures of trained networks: block mixing, one block swapped at a time, good and bad placements.

Each takes trials as ``trials.read_trials`` gives them and draws what it finds there.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.results.tables import write_figure
from nni_blockswap.studies.comparison import ONE_SWAP, RANDOM, SINGLE
from nni_blockswap.studies.trials import Point, Trial, points, read_trials, taught

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 0.1
"""A single-type network belongs to a budget where their parameters differ by at most this share."""


def mixing(trials: Sequence[Trial]) -> "Figure":
    """Densities of the errors of random mixed architectures, a panel a budget; single types as lines (Figure 2).

    Raises:
        StateError: there is no random architecture.
    """
    from matplotlib.figure import Figure

    mixed = _of(trials, RANDOM)
    single = _of(trials, SINGLE)
    drawn = Figure(figsize=(7, 2.4 * len(mixed)), layout="constrained")
    for axes, budget in zip(drawn.subplots(len(mixed), squeeze=False)[:, 0], mixed, strict=True):
        errors = [one.error for one in budget.trials]
        axes.plot(errors, [0.0] * len(errors), "|", color="C0", markersize=12)
        if len(set(errors)) > 1:
            axes.fill_between(*_density(errors), alpha=0.4, color="C0", label=f"{len(errors)} random, mixed")
        for number, point in enumerate(one for one in single if abs(one.params / budget.params - 1) <= NEAR):
            axes.axvline(point.error, color=f"C{number + 1}", linestyle="--", label=f"{point.variant} in every block")
        axes.set_title(budget.variant, fontsize=9)
        axes.set_yticks([])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    drawn.supxlabel("validation error (%)")
    drawn.supylabel("density")
    return drawn


def _density(errors: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the kernel density of ``errors`` is looked at, and its values."""
    from scipy.stats import gaussian_kde

    margin = 0.3 * (max(errors) - min(errors))
    at = np.linspace(min(errors) - margin, max(errors) + margin, 200)
    return at, gaussian_kde(errors)(at)


def blocks(trials: Sequence[Trial]) -> "Figure":
    """Error and parameters after the swap of one block, a bar a block; the original's as lines (Figure 4).

    Raises:
        StateError: no network has one block swapped.
    """
    from matplotlib.figure import Figure

    swapped = sorted(_of(trials, ONE_SWAP), key=lambda point: point.variant)
    labels = [point.variant for point in swapped]
    original = swapped[0].trials[0].architecture.teacher()
    teachers = [one.teacher_error for point in swapped for one in point.trials if one.teacher_error is not None]
    drawn = Figure(figsize=(max(6.0, 0.4 * len(labels)), 5.5), layout="constrained")
    upper, lower = drawn.subplots(2, 1, sharex=True)
    errors = [point.error for point in swapped]
    upper.bar(labels, errors, yerr=[point.spread or 0.0 for point in swapped], capsize=3)
    upper.set_ylim(0.8 * min(errors + teachers), 1.05 * max(errors + teachers) + 1e-9)
    upper.set_ylabel("validation error (%)")
    if teachers:
        upper.axhline(mean(teachers), color="black", linestyle="--", linewidth=1, label="original")
        upper.legend(fontsize=7)
    lower.bar(labels, [point.params / 1e6 for point in swapped], color="C1")
    lower.axhline(original.params / 1e6, color="black", linestyle="--", linewidth=1)
    lower.set_ylabel("parameters (millions)")
    lower.tick_params(axis="x", rotation=90)
    return drawn


def placements(trials: Sequence[Trial]) -> "Figure":
    """The best and the worst random architecture of each budget, a bar a block (Figure 5).

    A bar is as high as its substitute is capable: where it stands, from 1 up, among all that occur there, in the order
    of the error that each reaches in every block at once. What was not trained so has no bar.

    Raises:
        StateError: there is no random architecture.
    """
    from matplotlib.figure import Figure

    mixed = _of(trials, RANDOM)
    alone = capability(trials)
    drawn = Figure(figsize=(10, 2.4 * len(mixed)), layout="constrained")
    for row, budget in zip(drawn.subplots(len(mixed), 2, squeeze=False, sharey=True), mixed, strict=True):
        best, worst = (choose(budget.trials, key=lambda one: one.error) for choose in (min, max))
        for axes, name, one in zip(row, ("best", "worst"), (best, worst), strict=True):
            choices = one.architecture.choices
            ranks = [_rank(alone.get(label, {}), choice) for label, choice in choices.items()]
            axes.bar(list(choices), ranks, color="lightsteelblue")
            axes.set_ylim(0, 1.4 * max(map(len, alone.values()), default=1))
            axes.set_title(f"{budget.variant}, {name}: {one.error:.2f} %{_deviations(one, budget)}", fontsize=9)
            axes.tick_params(axis="x", rotation=90, labelsize=7)
            for position, choice in enumerate(choices.values()):
                axes.text(position, ranks[position], f" {choice}", rotation=90, fontsize=7, ha="center", va="bottom")
    drawn.supylabel("rank of the substitute alone")
    return drawn


def capability(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """By block and substitute, the error of the network that has it there as in every block; ``S`` is the original."""
    found: dict[str, dict[str, list[float]]] = {}
    for one in trials:
        if one.method == SINGLE:
            for label, choice in one.architecture.choices.items():
                found.setdefault(label, {}).setdefault(choice, []).append(one.error)
    for one in taught(trials):
        if one.method != SINGLE and one.teacher_error is not None:
            for label in one.architecture.choices:
                found.setdefault(label, {}).setdefault(ORIGINAL, []).append(one.teacher_error)
    return {label: {choice: mean(errors) for choice, errors in here.items()} for label, here in found.items()}


def _rank(errors: Mapping[str, float], choice: str) -> int:
    """How many of the substitutes, itself among them, are no better."""
    return sum(error >= errors[choice] for error in errors.values()) if choice in errors else 0


def _deviations(one: Trial, budget: Point) -> str:
    errors = [each.error for each in budget.trials]
    if len(set(errors)) < 2:
        return ""
    return f", {(one.error - mean(errors)) / stdev(errors):+.1f} standard deviations"


def _of(trials: Sequence[Trial], method: str) -> list[Point]:
    found = [point for point in points(trials) if point.method == method]
    if not found and method != SINGLE:
        raise StateError(
            f"this figure is of trials by the method '{method}', and none of these is one; "
            f"the experiments' comparison names it."
        )
    return found


FIGURES = {"mixing": mixing, "blocks": blocks, "placements": placements}


def draw(name: str, folders: Iterable[str | Path], out: str | Path) -> Path:
    """Draw figure ``name`` of the trials below ``folders``; the picture in ``out``.

    Raises:
        ConfigError: there is no such figure.
        StateError: the trials are not of the kind that it shows.
    """
    if name not in FIGURES:
        raise ConfigError(f"there is no figure '{name}'; choose from {', '.join(FIGURES)}.")
    path = Path(out) / f"{name}.png"
    write_figure(path, FIGURES[name](read_trials(folders)))
    return path
