"""BlockSwap's search, from a space and a budget to a ranking (section 4): sample, score, rank."""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nni_blockswap
from nni_blockswap.architecture import Architecture, complete_args, cost_table
from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import CostTable
from nni_blockswap.errors import BudgetError, ConfigError
from nni_blockswap.methods.sampler import Sampler
from nni_blockswap.results.board import Board
from nni_blockswap.results.journal import Journal
from nni_blockswap.results.ranking import Ranking, check_overwrites
from nni_blockswap.scoring.proxies import Score, make_proxy
from nni_blockswap.scoring.scorer import Scorer, can_compile, mean_score
from nni_blockswap.tasks import make_task

Indices = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What a score depends on, and how it is computed.

    Attributes:
        space: the search space's class as "module:Class".
        data: name of the data set.
        data_root: folder of the data set.
        space_args: arguments of the space's constructor.
        data_options: options of the data set.
        batch_size: of the minibatch; the paper takes that of the training.
        seed: of weights and minibatches, in a search of the samples too.
        proxy: what is measured.
        inits: a score is the mean over that many draws of the weights.
        minibatches: and over that many minibatches.
        train_minibatches: score after training on so many minibatches, the scored one included.
        augment: whether minibatches pass the training augmentation.
        device: "auto", "cpu", "cuda", ...
        precision: "auto", "float32", "bf16" or "float64".
        processes: that score side by side on a CPU; None is one a core. Scores do not depend on it.
        recompute: less memory and more time for the same scores; see ``Scorer``.
    """

    space: str
    data: str
    data_root: str | None = None
    space_args: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    seed: int = 0
    proxy: str = "fisher"
    inits: int = 1
    minibatches: int = 1
    train_minibatches: int = 1
    augment: bool = True
    device: str = "auto"
    precision: str = "auto"
    processes: int | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "inits", "minibatches", "train_minibatches"):
            check_count(name, getattr(self, name))
        if self.processes is not None:
            check_count("processes", self.processes)
        if self.seed < 0:
            raise ConfigError(f"seed is at least 0, not {self.seed!r}.")


@dataclass(frozen=True, kw_only=True)
class SearchSettings(ScoreSettings):
    """What is searched, for what budget, and how.

    Attributes:
        budgets: see ``Budget.parse``; one ranking each, the weights and minibatches shared.
        tolerance: None makes each budget a cap, 0.025 a band of 2.5 % on both sides.
        samples: architectures a budget.
        candidates: where given, the only substitutes to try, by block label.
    """

    budgets: Sequence[str]
    tolerance: float | None = None
    samples: int = 1000
    candidates: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples)
        if isinstance(self.budgets, str) or not self.budgets:
            raise BudgetError(f"budgets is a list of at least one budget, not {self.budgets!r}.")


def check_count(name: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is a whole number of at least 1, not {value!r}.")


@dataclass(frozen=True)
class Progress:
    """How far a search is: scores done and wanted, seconds and scores of this run, the best score so far."""

    done: int
    total: int
    seconds: float
    fresh: int
    best: float | None

    @property
    def rate(self) -> float:
        """Scores a second."""
        return self.fresh / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Estimate; infinite before the first score."""
        return (self.total - self.done) / self.rate if self.rate else float("inf")


def search(
    settings: SearchSettings,
    out: str | Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Ranking]:
    """Sample architectures within each budget, score them all, and rank them.

    With ``out`` every score is on disk as it comes; a second call with the same settings scores only what is missing
    and gives the same rankings: bit for bit on a CPU, on a GPU as far as its kernels are deterministic. ``out`` then
    holds ranking.csv and best.json, for several budgets in a folder each. A ranking of another budget, of other
    candidates or of another number of samples or draws is not overwritten; its scores are used.

    Raises:
        ScoreError: at some budget no score is finite; the other rankings are saved.
        BlockSwapError: settings that do not fit the space, the data or what ``out`` holds already.
    """
    table = table_of(settings)
    samples = sample(settings, table)
    scorer = _scorer(settings)
    folder = Path(out) if out is not None else None
    homes = [folder / str(budget) if len(samples) > 1 else folder for budget in samples] if folder else []
    for home, budget in zip(homes, samples, strict=False):
        check_overwrites(home, _extent(settings, table, budget))
    journal = Journal(folder, _identity(settings, scorer))
    wanted = sorted(set().union(*samples.values()))  # in order, neighbours share their first blocks
    with Board(folder, scorer.proxy.higher_is_better) as board:
        try:
            _score(settings, scorer, [table.names(indices) for indices in wanted], journal, board, on_progress)
        finally:
            journal.close()
        rankings = [_rank(settings, scorer, table, budget, found, journal) for budget, found in samples.items()]
        for home, ranking in zip(homes, rankings, strict=False):
            ranking.save(home)
        board.show(rankings)
    for ranking in rankings:
        _ = ranking.best  # raises where there is none
    return rankings


def score(
    settings: ScoreSettings,
    architectures: Sequence[Mapping[str, str]],
    out: str | Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Score]:
    """Score given architectures (canonical choices by label, in block order) as a search scores its samples.

    With ``out`` every score is on disk as it comes; a second call scores only what is missing.

    Raises:
        BlockSwapError: settings that do not fit the space, the data or what ``out`` holds already.
    """
    scorer = _scorer(settings)
    journal = Journal(Path(out) if out is not None else None, _identity(settings, scorer))
    try:
        board = Board(None, scorer.proxy.higher_is_better)
        _score(settings, scorer, architectures, journal, board, on_progress)
    finally:
        journal.close()
    return [_mean(settings, journal, choices) for choices in architectures]


def table_of(settings: SearchSettings) -> CostTable:
    """Costs of the candidates that the settings allow."""
    table = cost_table(settings.space, settings.space_args)
    return table if settings.candidates is None else table.narrowed(settings.candidates)


def sample(settings: SearchSettings, table: CostTable) -> dict[Budget, list[Indices]]:
    """Distinct architectures, uniform over those within each budget; a budget's samples do not depend on the others."""
    budgets: dict[Budget, str] = {}
    for text in settings.budgets:
        budget = Budget.parse(text, settings.tolerance)
        if budget in budgets:
            raise BudgetError(f"'{budgets[budget]}' and '{text}' are the same budget; give it once.")
        budgets[budget] = text
    return {
        budget: Sampler(table, budget).sample(
            settings.samples, np.random.default_rng([settings.seed, zlib.crc32(str(budget).encode())])
        )
        for budget in budgets
    }


def _scorer(settings: ScoreSettings) -> Scorer:
    return Scorer(
        settings.space,
        complete_args(settings.space, settings.space_args),
        make_task(settings.data, settings.data_root, **settings.data_options),
        make_proxy(settings.proxy),
        batch_size=settings.batch_size,
        seed=settings.seed,
        minibatches=settings.minibatches,
        train_minibatches=settings.train_minibatches,
        augment=settings.augment,
        device=settings.device,
        precision=settings.precision,
        processes=settings.processes,
        recompute=settings.recompute,
    )


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


def _score(
    settings: ScoreSettings,
    scorer: Scorer,
    wanted: Sequence[Mapping[str, str]],
    journal: Journal,
    board: Board,
    on_progress: Callable[[Progress], None],
) -> None:
    """Bring every wanted score into the journal, one draw of the weights after the other."""
    spelled = {_spell(choices): choices for choices in wanted}
    earlier = [(init, text) for init, text in journal if init < settings.inits and text in spelled]
    for key in earlier:
        board.add(journal[key].value)
    done, total, start = len(earlier), settings.inits * len(spelled), time.monotonic()
    for init in range(settings.inits):
        missing = [text for text in spelled if (init, text) not in journal]
        for position, score in scorer.scores(init, [spelled[text] for text in missing]) if missing else ():
            journal.add(init, missing[position], score)
            done += 1
            best = board.add(score.value)
            on_progress(Progress(done, total, time.monotonic() - start, done - len(earlier), best))


def _rank(
    settings: SearchSettings,
    scorer: Scorer,
    table: CostTable,
    budget: Budget,
    found: Iterable[Indices],
    journal: Journal,
) -> Ranking:
    provenance = {**_identity(settings, scorer), **_extent(settings, table, budget)}
    del provenance["space"], provenance["space_args"]
    scored = []
    for indices in found:
        architecture = Architecture.from_indices(settings.space, scorer.space_args, table, indices)
        score = _mean(settings, journal, architecture.choices)
        scored.append(architecture.scored(score.value, {**provenance, "block_scores": list(score.blocks)}))
    return Ranking.of(str(budget), scored, higher_is_better=scorer.proxy.higher_is_better)


def _extent(settings: SearchSettings, table: CostTable, budget: Budget) -> dict[str, Any]:
    """What a ranking depends on beside the scores."""
    candidates = f"{zlib.crc32(repr(table.candidates).encode()):08x}"  # a name for the lists of all blocks
    return {"inits": settings.inits, "samples": settings.samples, "budget": str(budget), "candidates": candidates}


def _mean(settings: ScoreSettings, journal: Journal, choices: Mapping[str, str]) -> Score:
    return mean_score([journal[init, _spell(choices)] for init in range(settings.inits)])


def _spell(choices: Mapping[str, str]) -> str:
    return " ".join(choices.values())
