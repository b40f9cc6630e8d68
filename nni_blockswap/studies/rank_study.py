"""How well each proxy foretells the final error: the paper's Table 1, for architectures that somebody has trained.

Every architecture is scored by every proxy after training on T minibatches, for each T asked for; the study reports
Spearman's rank correlation between score and error. For a proxy whose high score promises a low error, -1 is perfect.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

from nni_blockswap.architecture import Architecture
from nni_blockswap.conversation import OnProgress, unheard
from nni_blockswap.errors import ConfigError, DataError
from nni_blockswap.files import write_text
from nni_blockswap.library import choosing
from nni_blockswap.library.library import Library
from nni_blockswap.results.tables import markdown, write_csv, write_figure
from nni_blockswap.scoring.proxies.combination import is_high_good, parts, scores_of
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.searching import score
from nni_blockswap.spaces import complete_args, cost_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHOICES, ERROR = "choices", "error"
FEWEST = 3
"""Architectures below which a rank correlation says nothing."""

RESAMPLES = 2000
PERMUTATIONS = 99_999


@dataclass(frozen=True)
class Trained:
    """An architecture and the error it reached."""

    architecture: Architecture
    error: float


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of a proxy's scores with the errors.

    Attributes:
        proxy, train_minibatches: what was measured, and when.
        scores: one an architecture; those that are not finite rank as the worst.
        rho: Spearman's coefficient, tied values sharing their mean rank; NaN where all scores or errors are equal.
        p_value: of the hypothesis that there is no correlation, two-sided, by permutation: exact up to eight
            architectures, beyond from 99,999 random permutations, so that the least possible is 2e-5.
        interval: 95 % of the coefficients of bootstrap resamples of the architectures (percentiles).
    """

    proxy: str
    train_minibatches: int
    scores: tuple[float, ...]
    rho: float
    p_value: float
    interval: tuple[float, float]

    @property
    def non_finite(self) -> int:
        """How many scores are infinite or no number."""
        return sum(not math.isfinite(one) for one in self.scores)


def read_trained(path: str | Path, space: str, space_args: Mapping[str, Any]) -> list[Trained]:
    """Architectures with their errors, from a CSV file with a column ``error``.

    The architecture is given by a column for each block label, as in a ranking's file, or by one column ``choices``
    with the substitutes in block order, separated by spaces. Other columns are ignored.

    Raises:
        DataError: the file cannot be read, lacks a column or an error, or has fewer than three rows.
        SpaceError: an architecture is not one of the space.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:  # as spreadsheets write it, too
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"no table of trained architectures can be read from '{path}': {error}.") from error
    if len(rows) < FEWEST:
        raise DataError(f"a rank correlation needs at least {FEWEST} architectures; '{path}' has {len(rows)}.")
    return [
        Trained(Architecture.from_choices(space, _choices(row), space_args), _error(row, f"line {line} of '{path}'"))
        for line, row in enumerate(rows, start=2)
    ]


def _choices(row: Mapping[str, str | None]) -> list[str] | dict[str, str]:
    if row.get(CHOICES):
        return str(row[CHOICES]).split()
    return {label: str(name) for label, name in row.items() if str(label).startswith("block_")}


def _error(row: Mapping[str, str | None], where: str) -> float:
    if ERROR not in row:
        raise DataError(f"{where} has no column '{ERROR}'; it holds each architecture's final error.")
    try:
        error = float(row[ERROR] or "")
    except ValueError:
        error = math.nan
    if not math.isfinite(error):
        raise DataError(f"{where} has the error {row[ERROR]!r}; it must be a finite number.")
    return error


def rank_study(
    trained: Sequence[Trained],
    settings: ScoreSettings,
    proxies: Sequence[str],
    train_minibatches: Sequence[int],
    out: str | Path,
    on_progress: OnProgress = unheard,
    library: Library | None = None,
) -> list[Correlation]:
    """Correlate every proxy's scores after every number of training minibatches with the errors.

    Scores are kept below ``out``/scores as they come, so that a study that was killed goes on. Writes
    ``out``/correlations.md, correlations.csv, scores.csv and scatter.png.

    Args:
        settings: of the scores; its proxy and train_minibatches give way to those of the study.
        library: whose errors the proxies "library" and "library_log" add up, whatever the number of minibatches.
    """
    if not proxies or not train_minibatches:
        raise ConfigError("a rank study is of at least one proxy, after at least one number of training minibatches.")
    found = []
    summed = _sums(trained, settings, [name for name in proxies if name in choosing.PROXIES], library)
    choices = [one.architecture.choices for one in trained]
    errors = [one.error for one in trained]
    for steps in train_minibatches:
        singles = {}
        for proxy in dict.fromkeys(part for name in proxies if name not in summed for part in parts(name)):
            measured = replace(settings, proxy=proxy, train_minibatches=steps)
            scores = score(measured, choices, Path(out) / "scores" / f"{proxy}-{steps}", on_progress)
            singles[proxy] = [one.value for one in scores]
        found += [correlate(name, steps, summed.get(name) or scores_of(name, singles), errors) for name in proxies]
    _write(Path(out), trained, found)
    return found


def _sums(
    trained: Sequence[Trained], settings: ScoreSettings, proxies: Sequence[str], library: Library | None
) -> dict[str, list[float]]:
    """The scores by a library, by the proxy's name."""
    if library is None:
        if proxies:
            raise ConfigError(f"'{proxies[0]}' adds up a library's errors; name its folder.")
        return {}
    library.check(settings.space, settings.space_args, settings.data, settings.data_options)
    costs = cost_table(settings.space, complete_args(settings.space, settings.space_args))
    choices = [one.architecture.choices for one in trained]
    return {name: choosing.sums(library, name, costs, choices) for name in proxies}


def correlate(proxy: str, steps: int, scores: Sequence[float], errors: Sequence[float]) -> Correlation:
    """Spearman's coefficient of ``scores`` with ``errors``, its p-value and its spread over bootstrap resamples."""
    worst = -math.inf if proxy not in choosing.PROXIES and is_high_good(proxy) else math.inf
    values = np.array([one if math.isfinite(one) else worst for one in scores])
    if len(set(values.tolist())) == 1 or len(set(errors)) == 1:
        return Correlation(proxy, steps, tuple(scores), math.nan, math.nan, (math.nan, math.nan))
    rho, p_value = spearman(values, np.array(errors))
    return Correlation(proxy, steps, tuple(scores), rho, p_value, bootstrap_interval(values, np.array(errors)))


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Spearman's coefficient and its p-value; see ``Correlation``."""
    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    y /= np.sqrt((x @ x) * (y @ y))
    found = permutation_test(
        (x,),
        lambda permuted, axis: (permuted * y).sum(axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=10_000,
        random_state=0,
    )
    return float(found.statistic), float(found.pvalue)


def bootstrap_interval(a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """2.5 % and 97.5 % percentiles of Spearman's coefficient over resamples of the pairs, degenerate ones left out."""
    rows = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    ranks = [rankdata(values[rows], axis=1) for values in (a, b)]
    x, y = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        rho = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    low, high = np.nanpercentile(rho, [2.5, 97.5])
    return float(low), float(high)


def table(correlations: Sequence[Correlation]) -> str:
    """The paper's Table 1 in Markdown: a row a proxy, a column a number of training minibatches."""
    steps = sorted({one.train_minibatches for one in correlations})
    rows = [["proxy", *(f"{count} minibatch{'es' if count > 1 else ''}" for count in steps)]]
    for proxy in dict.fromkeys(one.proxy for one in correlations):
        cells = {one.train_minibatches: _cell(one) for one in correlations if one.proxy == proxy}
        rows.append([proxy, *(cells[count] for count in steps)])
    return markdown(rows)


def _cell(one: Correlation) -> str:
    if math.isnan(one.rho):
        return "undefined: all scores or all errors are equal"
    flag = f", {one.non_finite} non-finite" if one.non_finite else ""
    return f"{one.rho:+.2f} ({one.interval[0]:+.2f} to {one.interval[1]:+.2f}, p = {one.p_value:.1g}{flag})"


def _write(out: Path, trained: Sequence[Trained], found: Sequence[Correlation]) -> None:
    write_text(
        out / "correlations.md",
        f"Spearman's rank correlation with the final error of {len(trained)} architectures, after training on so many "
        f"minibatches (95 % bootstrap interval, p-value); -1 is perfect for a proxy whose high scores are good.\n\n"
        f"{table(found)}\n",
    )
    write_csv(
        out / "correlations.csv",
        [
            ("proxy", "train_minibatches", "spearman", "p_value", "low", "high", "architectures", "non_finite"),
            *(
                (one.proxy, one.train_minibatches, one.rho, one.p_value, *one.interval, len(trained), one.non_finite)
                for one in found
            ),
        ],
    )
    write_csv(out / "scores.csv", list(_score_rows(trained, found)))
    write_figure(out / "scatter.png", scatter([one.error for one in trained], found))


def _score_rows(trained: Sequence[Trained], found: Sequence[Correlation]) -> Iterator[list[object]]:
    yield ["id", CHOICES, "params", "macs", ERROR, *(f"{one.proxy}-{one.train_minibatches}" for one in found)]
    for index, one in enumerate(trained):
        network = one.architecture
        spelled = " ".join(network.choices.values())
        scores = (correlation.scores[index] for correlation in found)
        yield [network.id, spelled, network.params, network.macs, one.error, *scores]


def scatter(errors: Sequence[float], found: Sequence[Correlation]) -> "Figure":
    """Error against score, one panel a proxy and number of training minibatches."""
    from matplotlib.figure import Figure

    proxies = list(dict.fromkeys(one.proxy for one in found))
    steps = list(dict.fromkeys(one.train_minibatches for one in found))
    figure = Figure(figsize=(3.2 * len(steps), 2.6 * len(proxies)), layout="constrained")
    panels = figure.subplots(len(proxies), len(steps), sharey=True, squeeze=False)
    for one in found:
        axes = panels[proxies.index(one.proxy)][steps.index(one.train_minibatches)]
        axes.scatter(one.scores, errors, s=8)
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
        positive = [value for value in one.scores if math.isfinite(value) and value > 0]
        if len(positive) == len(one.scores) and max(positive) > 30 * min(positive):
            axes.set_xscale("log")
        axes.set_title(f"{one.proxy}, {one.train_minibatches} min.: {one.rho:+.2f}", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.supxlabel("score")
    figure.supylabel("final error")
    return figure
