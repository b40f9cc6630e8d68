"""Table 1 straight from an experiment: how well proxies foretell the errors that its random architectures reached."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from nni_blockswap.conversation import OnProgress, unheard
from nni_blockswap.errors import StateError
from nni_blockswap.files import read_json, write_text
from nni_blockswap.library.library import Library
from nni_blockswap.results.tables import markdown, write_csv
from nni_blockswap.results.trial import SETTINGS
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.studies.comparison import RANDOM
from nni_blockswap.studies.published import content
from nni_blockswap.studies.rank_study import FEWEST, Correlation, Trained, rank_study
from nni_blockswap.studies.trials import Trial, points, read_trials

SAME_BUDGET = 0.15
"""A budget is the paper's where their shares of the original's parameters differ by at most this share."""


@dataclass(frozen=True)
class Studied:
    """The random architectures of one budget, and what was found about them."""

    budget: str
    share: float
    correlations: tuple[Correlation, ...]


def study_experiment(
    folders: Iterable[str | Path],
    settings: Mapping[str, Any],
    proxies: Sequence[str],
    train_minibatches: Sequence[int],
    out: str | Path,
    on_progress: OnProgress = unheard,
    library: Library | None = None,
) -> str:
    """A rank study of the random architectures at each budget, in a folder of ``out`` each, and all as one table.

    Writes ``out``/table_1.md and table_1.csv, the paper's coefficients beside those that it has.

    Args:
        folders: with an experiment's trials below them.
        settings: fields of ``ScoreSettings``; space and data are those of the trials where they are not given.
        library: see ``rank_study``.

    Returns:
        The table in Markdown.

    Raises:
        StateError: no budget has enough random architectures.
    """
    folders = list(folders)
    drawn = [(point, _trained(point.trials)) for point in points(read_trials(folders)) if point.method == RANDOM]
    enough = [(point, trained) for point, trained in drawn if len(trained) >= FEWEST]
    if not enough:
        raise StateError(
            f"a rank study needs {FEWEST} architectures of the method '{RANDOM}' at a budget; train that many first."
        )
    data = {} if "data" in settings else data_of(folders)
    found = []
    for point, trained in enough:
        first = trained[0].architecture
        given = {"space": first.space, "space_args": first.space_args, **data, **settings}
        home = Path(out) / point.variant
        study = rank_study(trained, ScoreSettings(**given), proxies, train_minibatches, home, on_progress, library)
        found.append(Studied(point.variant, point.params / first.teacher().params, tuple(study)))
    rows = table_1(found)
    write_csv(Path(out) / "table_1.csv", rows)
    text = markdown(rows)
    write_text(
        Path(out) / "table_1.md",
        "Spearman's rank correlation with the final error after so many minibatches of training, in brackets the "
        f"paper's (Table 1).\n\n{text}\n",
    )
    return text


def _trained(trials: Sequence[Trial]) -> list[Trained]:
    """Each architecture once, with the mean of its errors."""
    errors: dict[str, list[float]] = {}
    for one in trials:
        errors.setdefault(one.architecture.id, []).append(one.error)
    first = {one.architecture.id: one.architecture for one in reversed(trials)}
    return [Trained(first[identity], mean(reached)) for identity, reached in errors.items()]


def data_of(folders: Iterable[str | Path]) -> dict[str, Any]:
    """The data that trials below ``folders`` were trained on, as ``ScoreSettings`` names it.

    Raises:
        StateError: there is no trial that says, or one is damaged.
    """
    for path in (path for folder in folders for path in Path(folder).rglob(SETTINGS)):
        try:
            kept = dict(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise StateError(f"'{path}' is damaged ({error}); train that trial again.") from error
        if "data" in kept:
            return {name: kept[name] for name in ("data", "data_root", "data_options") if name in kept}
    raise StateError("no trial here says what data it was trained on; give --data (and --data-root).")


def table_1(studied: Sequence[Studied]) -> list[list[str]]:
    """A row a proxy, a column a budget and number of minibatches."""
    published = content()["rank correlations"]
    steps = sorted({one.train_minibatches for each in studied for one in each.correlations})
    rows = [["proxy", *(f"{each.budget}, {count} min." for each in studied for count in steps)]]
    for proxy in dict.fromkeys(one.proxy for each in studied for one in each.correlations):
        cells = [proxy]
        for each in studied:
            rho = {one.train_minibatches: one.rho for one in each.correlations if one.proxy == proxy}
            paper = _paper(published.get(proxy, {}), each.share)
            cells += [f"{rho[count]:+.3f}" + (f" ({paper[count]:+.3f})" if count in paper else "") for count in steps]
        rows.append(cells)
    return rows


def _paper(coefficients: Mapping[str, Sequence[float]], share: float) -> dict[int, float]:
    """The paper's coefficients at the budget of that share of the original, by number of minibatches."""
    original = content()["original"]
    for budget, found in coefficients.items():
        if abs(share * original / (1000 * int(budget.removesuffix("K"))) - 1) <= SAME_BUDGET:
            return dict(zip((1, 10, 100), found, strict=True))
    return {}
