"""The protocol of a method: it sees a table of costs and a budget, proposes architectures, and is told their scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.table import Indices, Table


@dataclass(frozen=True)
class Request:
    """Architectures to score.

    Attributes:
        rows: which; those that were scored before cost nothing.
        inits: average over the first so many draws of the weights; None is all that the search asks for.
    """

    rows: tuple[Indices, ...]
    inits: int | None = None


@dataclass(frozen=True)
class Problem:
    """What a method is to solve.

    Attributes:
        table: candidates and costs.
        budget: what an architecture may cost.
        samples: how many architectures may be scored.
        seed: of all that it draws; the same seed makes the same proposals after the same scores, in any process.
        inits: draws of the weights that a full score is the mean of.
        higher_is_better: whether a good score is a high one.
    """

    table: Table
    budget: Budget
    samples: int
    seed: int
    inits: int = 1
    higher_is_better: bool = True

    @property
    def sign(self) -> float:
        """What a score is multiplied by, so that the greater is the better."""
        return 1.0 if self.higher_is_better else -1.0

    def merit(self, score: float) -> float:
        """The greater the better; that of what is infinite or no number is below all others.

        Example:
            >>> from math import inf, nan
            >>> lower = Problem(Table((), (), {}), Budget(params=1), 1, 0, higher_is_better=False)
            >>> lower.merit(2.5), lower.merit(-inf), lower.merit(nan)
            (-2.5, -inf, -inf)
        """
        return self.sign * score if math.isfinite(score) else -math.inf


class Method(Protocol):
    """Searches one budget.

    In time: it is made from a ``Problem``; then it is asked for a ``Request``, told the scores of its rows, and asked
    again, until it asks for nothing. A search that was killed is run again from its beginning, its old scores at hand:
    so whatever a method proposes must follow from the problem and from what it was told.

    Every architecture that it asked a full score for comes into the ranking.
    """

    def __init__(self, problem: Problem) -> None:
        """Raises BudgetError where no architecture meets the budget."""

    def ask(self) -> Request | None:
        """What to score next; None when it is done. What does not meet the budget is refused, and ends the search."""

    def tell(self, scores: Mapping[Indices, float]) -> None:
        """The scores of what was asked for; they may be infinite or no number."""
