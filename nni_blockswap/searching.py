"""BlockSwap's search, from a space and a budget to a ranking (section 4): ask, score, tell; rank."""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import nni_blockswap
from nni_blockswap.architecture import Architecture, cost_table
from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices, Table
from nni_blockswap.errors import BudgetError, ConfigError, SpaceError
from nni_blockswap.library import choosing
from nni_blockswap.library.library import Library
from nni_blockswap.methods import METHODS, Method
from nni_blockswap.methods.base import Problem
from nni_blockswap.results.board import Board
from nni_blockswap.results.journal import Journal
from nni_blockswap.results.ranking import Ranking, check_overwrites
from nni_blockswap.scoring.engines.cpu_layers import can_compile
from nni_blockswap.scoring.proxies import Score, make_proxy, mean_score
from nni_blockswap.scoring.proxies.combination import parts, scores_of
from nni_blockswap.scoring.scorer import Scorer
from nni_blockswap.scoring.settings import ScoreSettings, check_count
from nni_blockswap.tasks import make_task

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
        method: how architectures are chosen.
        samples: architectures a budget.
        candidates: where given, the only substitutes to try, by block label.
        library: folder of the library whose errors the proxies "library" and "library_log" add up. With them nothing is
            measured or sampled: the best architectures are found exactly, at most ``library.choosing.LISTED`` of them.
    """

    budgets: Sequence[str]
    tolerance: float | None = None
    at_most: bool = False
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
        if isinstance(self.budgets, str) or not self.budgets:
            raise BudgetError(f"budgets is a list of at least one budget, not {self.budgets!r}.")

    def parsed(self) -> list[Budget]:
        """The budgets. Raises BudgetError where one is none, or is there twice."""
        found: dict[Budget, str] = {}
        for text in self.budgets:
            budget = Budget.parse(text, self.tolerance, self.at_most)
            budget = budget if self.library is None else budget.capped()
            if budget in found:
                raise BudgetError(f"'{found[budget]}' and '{text}' are the same budget; give it once.")
            found[budget] = text
        return list(found)


@dataclass(frozen=True)
class Progress:
    """How far a search is: scores done and wanted, seconds and scores of this run, the best so far, and what scores."""

    done: int
    total: int
    seconds: float
    fresh: int
    best: float | None
    engine: str = ""

    @property
    def seconds_each(self) -> float:
        """Seconds a score takes; 0 before the first score."""
        return self.seconds / self.fresh if self.fresh else 0.0

    @property
    def has_pace(self) -> bool:
        """Whether the seconds of a score are known: the first one's hold the engine's preparations, too."""
        return self.fresh > 1 or self.done == self.total

    @property
    def spelled_engine(self) -> str:
        """Such as ``engine: plain (network by network, as the loss is one's own); 0.21 s a candidate``."""
        return f"engine: {self.engine}; {self.seconds_each:.2g} s a candidate"

    @property
    def rate(self) -> float:
        """Scores a second."""
        return self.fresh / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Estimate; infinite before the first score."""
        return (self.total - self.done) / self.rate if self.rate else float("inf")


OnProgress = Callable[[Progress], None]


def search(
    settings: SearchSettings,
    out: str | Path | None = None,
    on_progress: OnProgress = lambda progress: None,
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
        found = _converse(methods, _Scoring(scorer, journal, board, on_progress), table)
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
    if settings.method != "uniform":
        raise ConfigError(
            f"'{settings.proxy}' compares candidates that are all known before, as those of the method 'uniform' are; "
            f"'{settings.method}' needs a proxy that says something of one alone."
        )
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
    library.check(settings.space, settings.space_args, settings.data)
    return choosing.choose(library, settings.proxy, table, settings.parsed(), settings.samples, homes)


def score(
    settings: ScoreSettings,
    architectures: Sequence[Mapping[str, str]],
    out: str | Path | None = None,
    on_progress: OnProgress = lambda progress: None,
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
        scoring = _Scoring(scorer, journal, Board(None, scorer.proxy.higher_is_better), on_progress)
        scoring.score(architectures, settings.inits)
    return [_mean(journal, choices, settings.inits) for choices in architectures]


def table_of(settings: SearchSettings) -> Table:
    """Costs of the candidates that the settings allow, by all resources that a budget limits."""
    resources = [name for budget in settings.parsed() for name in budget.resources]
    table = cost_table(settings.space, settings.space_args, resources)
    if not table.labels:
        raise SpaceError(f"{settings.space} has no block, so there is nothing to search.")
    return table if settings.candidates is None else table.narrowed(settings.candidates)


def make_method(settings: SearchSettings, table: Table, budget: Budget, higher_is_better: bool = True) -> Method:
    """The method that searches ``budget``; what it proposes does not depend on other budgets."""
    problem = Problem(table, budget, settings.samples, settings.seed, settings.inits, higher_is_better)
    return METHODS[settings.method](problem)


def _converse(methods: Sequence[Method], scoring: "_Scoring", table: Table) -> list[list[Indices]]:
    """Ask all methods, score what they want, and tell them, until none wants more.

    Returns:
        What each wanted full scores of, in the order in which it asked.
    """
    everything = scoring.inits
    found: list[dict[Indices, None]] = [{} for _ in methods]
    asking = dict(enumerate(methods))
    while asking:
        requests = {number: request for number, method in asking.items() if (request := method.ask()) is not None}
        wanted: dict[int, set[Indices]] = {}
        for request in requests.values():
            wanted.setdefault(request.inits or everything, set()).update(request.rows)
        for inits, rows in sorted(wanted.items()):
            scoring.score([table.names(row) for row in sorted(rows)], inits)  # neighbours share their first blocks
        for number, request in requests.items():
            inits = request.inits or everything
            if inits == everything:
                found[number] |= dict.fromkeys(request.rows)
            asking[number].tell({row: _mean(scoring.journal, table.names(row), inits).value for row in request.rows})
        asking = {number: asking[number] for number in requests}
    return [list(rows) for rows in found]


class _Scoring:
    """Brings scores into the journal, and tells how far it is."""

    def __init__(self, scorer: Scorer, journal: Journal, board: Board, on_progress: Callable[[Progress], None]) -> None:
        self.inits = scorer.settings.inits
        self.journal = journal
        self._scorer, self._board, self._on_progress = scorer, board, on_progress
        self._wanted: set[tuple[int, str]] = set()
        self._done = self._fresh = 0
        self._start = time.monotonic()

    def score(self, wanted: Sequence[Mapping[str, str]], inits: int) -> None:
        """Bring the scores of ``wanted`` into the journal, one draw of the weights after the other."""
        spelled = {_spell(choices): choices for choices in wanted}
        asked = {(init, text) for init in range(inits) for text in spelled} - self._wanted
        for key in self.journal:
            if key in asked:
                self._done += 1
                self._board.add(self.journal[key].value)
        self._wanted |= asked
        for init in range(inits):
            missing = [text for text in spelled if (init, text) not in self.journal]
            found = self._scorer.scores(init, [spelled[text] for text in missing]) if missing else ()
            for position, score in found:
                self.journal.add(init, missing[position], score)
                self._tell(self._board.add(score.value))

    def _tell(self, best: float | None) -> None:
        self._done, self._fresh = self._done + 1, self._fresh + 1
        seconds = time.monotonic() - self._start
        told = Progress(self._done, len(self._wanted), seconds, self._fresh, best, self._scorer.engine)
        self._on_progress(told)


def _identity(settings: ScoreSettings, scorer: Scorer) -> dict[str, Any]:
    """What a score depends on."""
    return {
        "space": settings.space,
        "space_args": scorer.space_args,
        "data": settings.data,
        "batch_size": settings.batch_size,
        "batch_fingerprint": scorer.fingerprint,
        "seed": settings.seed,
        "proxy": settings.proxy,
        "minibatches": settings.minibatches,
        "train_minibatches": settings.train_minibatches,
        "augment": settings.augment,
        "device": scorer.device.type,
        "precision": scorer.precision,
        "compiled": can_compile(scorer.precision, scorer.device),
        "versions": {"nni_blockswap": nni_blockswap.__version__, "torch": torch.__version__},
    }


def _rank(
    settings: SearchSettings,
    scorer: Scorer,
    table: Table,
    budget: Budget,
    found: Sequence[Indices],
    journal: Journal,
) -> Ranking:
    provenance = {**_identity(settings, scorer), **_extent(settings, table, budget), **measured(table)}
    del provenance["space"], provenance["space_args"]
    scored = []
    for indices in found:
        architecture = Architecture.from_indices(settings.space, scorer.space_args, table, indices)
        score = _mean(journal, architecture.choices, settings.inits)
        scored.append(architecture.scored(score.value, {**provenance, "block_scores": list(score.blocks)}))
    return Ranking.of(str(budget), scored, higher_is_better=scorer.proxy.higher_is_better)


def measured(table: Table) -> dict[str, Any]:
    """Where and when the costs were measured that are not counted."""
    sources = {name: dict(column.source) for name, column in table.columns.items() if column.source}
    return {"measured": sources} if sources else {}


def _extent(settings: SearchSettings, table: Table, budget: Budget) -> dict[str, Any]:
    """What a ranking depends on beside the scores."""
    candidates = f"{zlib.crc32(repr(table.candidates).encode()):08x}"  # a name for the lists of all blocks
    return {"proxy": settings.proxy, "method": settings.method, "inits": settings.inits, "samples": settings.samples,
            "budget": str(budget), "candidates": candidates}  # fmt: skip


def _mean(journal: Journal, choices: Mapping[str, str], inits: int) -> Score:
    return mean_score([journal[init, _spell(choices)] for init in range(inits)])


def _spell(choices: Mapping[str, str]) -> str:
    return " ".join(choices.values())
