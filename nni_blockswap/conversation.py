"""The conversation of methods and a scorer: ask, score, tell."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices, Table
from nni_blockswap.errors import BudgetError, ConfigError, shown
from nni_blockswap.methods import Method
from nni_blockswap.results.board import Board
from nni_blockswap.results.journal import Journal
from nni_blockswap.scoring.proxies import Score, mean_score
from nni_blockswap.scoring.scorer import Scorer


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
"""Is told how far a search is."""


def unheard(progress: object) -> None:
    """An ``OnProgress`` for whoever does not want to be told."""


def converse(
    methods: Sequence[Method], scoring: "Scoring", table: Table, budgets: Sequence[Budget]
) -> list[list[Indices]]:
    """Ask all methods, score what they want, and tell them, until none wants more.

    Returns:
        What each wanted full scores of, in the order in which it asked.

    Raises:
        ConfigError: a method wants what is no architecture.
        BudgetError: it wants one outside its budget.
    """
    everything = scoring.inits
    found: list[dict[Indices, None]] = [{} for _ in methods]
    asking = dict(enumerate(methods))
    while asking:
        requests = {number: request for number, method in asking.items() if (request := method.ask()) is not None}
        wanted: dict[int, set[Indices]] = {}
        for number, request in requests.items():
            _check_rows(request.rows, table, budgets[number])
            wanted.setdefault(request.inits or everything, set()).update(request.rows)
        for inits, rows in sorted(wanted.items()):
            scoring.score([table.names(row) for row in sorted(rows)], inits)  # neighbours share their first blocks
        for number, request in requests.items():
            inits = request.inits or everything
            if inits == everything:
                found[number] |= dict.fromkeys(request.rows)
            asking[number].tell({row: mean_of(scoring.journal, table.names(row), inits).value for row in request.rows})
        asking = {number: asking[number] for number in requests}
    return [list(rows) for rows in found]


def _check_rows(rows: Sequence[Indices], table: Table, budget: Budget) -> None:
    sizes = [len(names) for names in table.candidates]
    for row in rows:
        if len(row) != len(sizes) or not all(0 <= index < size for index, size in zip(row, sizes, strict=True)):
            raise ConfigError(
                f"the method asks for {shown(row)}, and an architecture is {len(sizes)} indices, in each block that of "
                "one of its candidates."
            )
        costs = table.costs(row)
        if not budget.admits(table, costs):
            spelled = " and ".join(f"{costs[name]:,} {table.column(name).unit}" for name in budget.resources)
            raise BudgetError(
                f"the method asks for an architecture with {spelled}, and the budget allows {budget.describe(table)}; "
                "let its ask() propose what the budget admits alone."
            )


class Scoring:
    """Brings scores into the journal, and tells how far it is."""

    def __init__(self, scorer: Scorer, journal: Journal, board: Board, on_progress: OnProgress) -> None:
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
        for init in sorted(range(inits), key=lambda init: init != self._scorer.init):
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


def mean_of(journal: Journal, choices: Mapping[str, str], inits: int) -> Score:
    """What ``journal`` has of an architecture, over so many draws of the weights."""
    return mean_score([journal[init, _spell(choices)] for init in range(inits)])


def _spell(choices: Mapping[str, str]) -> str:
    return " ".join(choices.values())
