"""A search in TensorBoard: best score so far, the distribution of scores, score against each resource."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nni_blockswap.cost.resources import unit_of
from nni_blockswap.results.ranking import Ranking
from nni_blockswap.results.writers import quieten_writers

EVERY = 25
"""Scores between two points of a curve."""

WIDEST = 1e20
"""Where the bins of TensorBoard's histograms end; of scores that all lie beyond it makes none."""


class Board:
    """Writes below ``folder``/tensorboard; with no folder it only keeps the best score.

    A search that goes on adds its earlier scores first: its curves take the place of those drawn before.
    """

    def __init__(self, folder: Path | None, higher_is_better: bool) -> None:
        self._higher_is_better = higher_is_better
        self._best: float | None = None
        self._scores: list[float] = []
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            quieten_writers()
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0)

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            if len(self._scores) % EVERY:
                self._draw()
            self._writer.close()

    def add(self, score: float) -> float | None:
        """Note a score; returns the best finite one so far."""
        if math.isfinite(score):
            self._scores.append(score)
            choose = max if self._higher_is_better else min
            self._best = score if self._best is None else choose(self._best, score)
            if self._writer is not None and len(self._scores) % EVERY == 0:
                self._draw()
        return self._best

    def _draw(self) -> None:
        self._writer.add_scalar("search/best_score", self._best, len(self._scores))
        if any(abs(score) < WIDEST for score in self._scores):
            self._writer.add_histogram("search/scores", _array(self._scores), len(self._scores))

    def show(self, rankings: Sequence[Ranking]) -> None:
        """Scatter plots of score against each resource, and each winner as text."""
        if self._writer is None:
            return
        for ranking in rankings:
            if not ranking.top(1):  # no finite score: nothing to show
                continue
            best = ranking.best
            choices = "\n".join(f"| {label} | {name} |" for label, name in best.choices.items())
            self._writer.add_text(
                f"best/{ranking.budget}",
                f"score {best.score:.6g}, {best.spelled_costs}\n\n| block | substitute |\n|---|---|\n{choices}",
            )
            self._writer.add_figure(f"score_by_cost/{ranking.budget}", scatter(ranking))


def scatter(ranking: Ranking) -> Any:
    """Score against each resource, as a matplotlib figure."""
    from matplotlib.figure import Figure

    finite = [one for one in ranking.architectures if one.score is not None and math.isfinite(one.score)]
    resources = list(finite[0].costs)
    figure = Figure(figsize=(4.5 * len(resources), 4), layout="constrained")
    for axes, resource in zip(figure.subplots(1, len(resources), sharey=True), resources, strict=True):
        axes.scatter([one.costs[resource] for one in finite], [one.score for one in finite], s=8)
        axes.scatter([finite[0].costs[resource]], [finite[0].score], s=40, marker="*", color="C3", label="best")
        axes.set_xlabel(unit_of(resource))
    figure.axes[0].set_ylabel("score")
    figure.axes[0].legend()
    figure.suptitle(f"{len(finite)} candidates at {ranking.budget}")
    return figure


def _array(values: Sequence[float]) -> Any:
    import numpy as np

    return np.asarray(values)
