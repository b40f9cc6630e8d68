"""BlockSwap's search, from a space and a budget to a ranking (section 4): ask, score, tell; rank."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import nni_blockswap
from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.digest import digest_of_class
from nni_blockswap.conversation import OnProgress, Scoring, converse, mean_of, unheard
from nni_blockswap.cost.budget import Budget, known_resource
from nni_blockswap.cost.table import Indices, Table
from nni_blockswap.errors import BudgetError, ConfigError
from nni_blockswap.library import choosing
from nni_blockswap.library.library import Library
from nni_blockswap.methods import Method, method_named
from nni_blockswap.methods.base import Problem
from nni_blockswap.ranges import check_count
from nni_blockswap.results.board import Board
from nni_blockswap.results.journal import Journal
from nni_blockswap.results.ranking import Ranking, check_overwrites
from nni_blockswap.scoring.engines.cpu_layers import can_compile
from nni_blockswap.scoring.proxies import Score, make_proxy
from nni_blockswap.scoring.proxies.combination import parts, scores_of
from nni_blockswap.scoring.scorer import Scorer
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.spaces import cost_table, table_of_blocks
from nni_blockswap.tasks import make_task
from nni_blockswap.trust import IMPORTED, packages_in

MOST_SAMPLES = 10**7
"""At a thousand a second this is three hours."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings(ScoreSettings):
    """What is searched, for what budget, and how.

    Attributes:
        budgets: see ``Budget.parse``; one ranking each, the weights and minibatches shared.
        tolerance: 0.025 makes each budget a band of 2.5 % on both sides; None is at most the budget, and at least 95 %.
        at_most: take all that costs less than the budgets, too. A library's choice does, unless it has a tolerance: its
            sums are exact, so a floor could only rule out what is both cheaper and better.
        resources: what else is told of each architecture, beside parameters, MACs and what budgets limit; ``latency``
            is measured, and a front is one over it, too.
        method: how architectures are chosen.
        samples: architectures a budget.
        candidates: where given, the only substitutes to try, by block label.
        library: folder of the library whose errors the proxies "library" and "library_log" add up. With them nothing is
            measured or sampled: the best architectures are found exactly, at most ``library.choosing.LISTED`` of them.
    """

    budgets: Sequence[str | Budget]
    tolerance: float | None = None
    at_most: bool = False
    resources: Sequence[str] = ()
    method: str = "uniform"
    samples: int = 1000
    candidates: Mapping[str, Sequence[str]] | None = None
    library: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples, MOST_SAMPLES)
        if (self.proxy in choosing.PROXIES) != (self.library is not None):
            raise ConfigError(
                f"the proxies {' and '.join(choosing.PROXIES)}, and no others, take a library: the folder that "
                "'blockswap library' filled."
            )
        check_method(self.method, self.proxy)
        if isinstance(self.budgets, str) or not self.budgets:
            raise BudgetError(f"budgets is a list of at least one budget, not {self.budgets!r}.")
        if isinstance(self.resources, str):
            raise BudgetError(f"resources is a list of names, not {self.resources!r}.")

    def parsed(self) -> list[Budget]:
        """The budgets. Raises BudgetError where one is none, or is there twice."""
        found: dict[Budget, str | Budget] = {}
        for text in self.budgets:
            budget = Budget.parse(text, self.tolerance, self.at_most)
            budget = budget if self.library is None else budget.capped()
            if budget in found:
                raise BudgetError(f"'{found[budget]}' and '{text}' are the same budget; give it once.")
            found[budget] = text
        return list(found)


def check_method(method: str, proxy: str) -> None:
    """Raise ConfigError where ``method`` has nothing to do with scores by ``proxy``."""
    if method == "uniform":
        return
    if proxy in choosing.PROXIES:
        raise ConfigError(f"a library's optimum is found exactly, and nothing is left to '{method}'; leave method out.")
    if len(parts(proxy)) > 1:
        raise ConfigError(
            f"'{proxy}' compares candidates that are all known before, as those of the method 'uniform' are; "
            f"'{method}' needs a proxy that says something of one alone."
        )


def search(
    settings: SearchSettings,
    out: str | Path | None = None,
    on_progress: OnProgress = unheard,
) -> list[Ranking]:
    """Score the architectures that the method asks for within each budget, and rank them.

    With ``out`` every score is on disk as it comes; a second call with the same settings scores only what is missing
    and gives the same rankings: bit for bit on a CPU, on a GPU as far as its kernels are deterministic. ``out`` then
    holds ranking.csv and best.json, for several budgets in a folder each. A ranking of another budget, of other
    candidates or of another number of samples or draws is not overwritten; its scores are used. A combination of
    proxies, "fisher+naswot", has the scores of each in a folder of its name.

    Raises:
        ScoreError: at some budget no score is finite; the other rankings are saved.
        BlockSwapError: settings that do not fit the space, the data or what ``out`` holds already.
    """
    table, budgets = table_of(settings), settings.parsed()
    folder = Path(out) if out is not None else None
    homes = [folder / budget.folder if len(budgets) > 1 else folder for budget in budgets] if folder else []
    if settings.library is not None:
        return _chosen(settings, settings.library, table, homes)
    extents = [_extent(settings, table, budget) for budget in budgets]
    if len(parts(settings.proxy)) > 1:
        check_overwrites(homes, extents)
        return _search_by_places(settings, folder, homes, on_progress)
    proxy = make_proxy(settings.proxy)
    methods = [make_method(settings, table, budget, proxy.higher_is_better) for budget in budgets]
    scorer = Scorer(settings, make_task(settings.data, settings.data_root, **settings.data_options), proxy)
    journal = Journal(folder, _identity(settings, scorer))
    with closing(journal), closing(scorer), Board(folder, proxy.higher_is_better) as board:
        check_overwrites(homes, extents)
        found = converse(methods, Scoring(scorer, journal, board, on_progress), table, budgets)
        rankings = [
            _rank(settings, scorer, table, budget, rows, journal) for budget, rows in zip(budgets, found, strict=True)
        ]
        for home, ranking in zip(homes, rankings, strict=False):
            ranking.save(home)
        board.show(rankings)
    for ranking in rankings:
        _ = ranking.best  # raises where there is none
    return rankings


def _search_by_places(
    settings: SearchSettings, folder: Path | None, homes: Sequence[Path], on_progress: OnProgress
) -> list[Ranking]:
    """Search by each proxy alone, below ``folder``, and rank the candidates by what they say together."""
    alone = {
        name: search(replace(settings, proxy=name), folder and folder / name, on_progress)
        for name in parts(settings.proxy)
    }
    rankings = [
        Ranking.together(settings.proxy, dict(zip(alone, of_budget, strict=True)))
        for of_budget in zip(*alone.values(), strict=True)
    ]
    for home, ranking in zip(homes, rankings, strict=False):
        ranking.save(home)
    for ranking in rankings:
        _ = ranking.best  # raises where there is none
    return rankings


def _chosen(settings: SearchSettings, folder: str, table: Table, homes: Sequence[Path]) -> list[Ranking]:
    """The exact optima by a library, once it is sure that it is one of this space and data."""
    library = Library.load(folder)
    library.check(settings.space, settings.space_args, settings.data, settings.data_options)
    return choosing.choose(library, settings.proxy, table, settings.parsed(), settings.samples, homes)


def score(
    settings: ScoreSettings,
    architectures: Sequence[Mapping[str, str]],
    out: str | Path | None = None,
    on_progress: OnProgress = unheard,
) -> list[Score]:
    """Score given architectures (canonical choices by label, in block order) as a search scores its samples.

    With ``out`` every score is on disk as it comes; a second call scores only what is missing.

    Raises:
        BlockSwapError: settings that do not fit the space, the data or what ``out`` holds already.
    """
    names = parts(settings.proxy)
    if len(names) > 1:
        found = {
            name: score(replace(settings, proxy=name), architectures, out and Path(out) / name, on_progress)
            for name in names
        }
        columns = {name: [one.value for one in column] for name, column in found.items()}
        return [Score(value) for value in scores_of(settings.proxy, columns)]
    task = make_task(settings.data, settings.data_root, **settings.data_options)
    scorer = Scorer(settings, task, make_proxy(settings.proxy))
    with (
        closing(Journal(Path(out) if out is not None else None, _identity(settings, scorer))) as journal,
        closing(scorer),
    ):
        scoring = Scoring(scorer, journal, Board(None, scorer.proxy.higher_is_better), on_progress)
        scoring.score(architectures, settings.inits)
    return [mean_of(journal, choices, settings.inits) for choices in architectures]


def table_of(settings: SearchSettings) -> Table:
    """Costs of the candidates that the settings allow, by all resources that a budget limits or ``resources`` names."""
    resources = [name for budget in settings.parsed() for name in budget.resources]
    resources += [known_resource(name, f"'{name}' is no resource") for name in settings.resources]
    table = table_of_blocks(settings.space, settings.space_args, resources)
    return table if settings.candidates is None else table.narrowed(settings.candidates)


def make_method(settings: SearchSettings, table: Table, budget: Budget, higher_is_better: bool = True) -> Method:
    """The method that searches ``budget``; what it proposes does not depend on other budgets."""
    problem = Problem(table, budget, settings.samples, settings.seed, settings.inits, higher_is_better)
    return method_named(settings.method)(problem)


def _identity(settings: ScoreSettings, scorer: Scorer) -> dict[str, Any]:
    """What a score depends on."""
    loss = getattr(scorer.task, "loss_digest", None)  # of a user's own; those of data sets go by their names
    return {
        "space": settings.space,
        "space_args": scorer.space_args,
        "data": settings.data,
        "batch_size": settings.batch_size,
        "batch_fingerprint": scorer.fingerprint,
        "seed": settings.seed,
        "proxy": settings.proxy,
        **({} if loss is None else {"loss": loss}),
        **_own_code(settings, scorer),
        "minibatches": settings.minibatches,
        "train_minibatches": settings.train_minibatches,
        "augment": settings.augment,
        "device": scorer.device.type,
        "precision": scorer.precision,
        "compiled": can_compile(scorer.precision, scorer.device),
        "versions": {"nni_blockswap": nni_blockswap.__version__, "torch": torch.__version__},
    }


def _own_code(settings: ScoreSettings, scorer: Scorer) -> dict[str, str]:
    """What tells a proxy and a space of the user's own from what they were before their code was changed.

    Of a space it is what its candidates cost: a layer that costs the same is not told from another.
    """
    kind = type(scorer.proxy)
    own = set(packages_in([settings.space, scorer.space_args])) - {*IMPORTED, "live"}  # what lives has a digest
    return {
        **({} if kind.__module__.startswith("nni_blockswap.") else {"proxy_digest": digest_of_class(kind)}),
        **({"costs_digest": cost_table(settings.space, scorer.space_args).costs_digest} if own else {}),
    }


def _rank(
    settings: SearchSettings,
    scorer: Scorer,
    table: Table,
    budget: Budget,
    found: Sequence[Indices],
    journal: Journal,
) -> Ranking:
    if not found:
        raise ConfigError(
            f"the method '{settings.method}' asked for the full score of no architecture, so there is none to rank; "
            "its ask() should give a Request before it gives None."
        )
    provenance = {**_identity(settings, scorer), **_extent(settings, table, budget), **table.measured}
    del provenance["space"], provenance["space_args"]
    scored = []
    for indices in found:
        architecture = Architecture.from_indices(settings.space, scorer.space_args, table, indices)
        mean = mean_of(journal, architecture.choices, settings.inits)
        scored.append(architecture.scored(mean.value, {**provenance, "block_scores": list(mean.blocks)}))
    return Ranking.of(str(budget), scored, higher_is_better=scorer.proxy.higher_is_better)


def _extent(settings: SearchSettings, table: Table, budget: Budget) -> dict[str, Any]:
    """What a ranking depends on beside the scores."""
    return {"proxy": settings.proxy, "method": settings.method, "inits": settings.inits, "samples": settings.samples,
            "budget": str(budget), "candidates": table.digest}  # fmt: skip
