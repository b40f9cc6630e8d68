"""Budgets: how many parameters and MACs an architecture may cost (counted as in ``cost.py``).

A budget limits one resource or both, in absolute figures or as a share of the teacher, the network with ``S`` in every
block, whatever the search space is narrowed to. Without a tolerance each figure is a cap. With a tolerance t each is
the middle of a band:

    cap:   0 <= cost <= figure            band:   (1 - t) figure <= cost <= (1 + t) figure
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING

from nni_blockswap.errors import BudgetError

if TYPE_CHECKING:  # cost.py needs torch; reading a budget does not
    from nni_blockswap.cost.table import CostTable

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_NUMBER = r"\d+(?:\.\d+)?"
_LIMIT = re.compile(rf"(?:(?P<resource>params|macs)=)?(?P<number>{_NUMBER})(?P<unit>[KMG%]?)", re.IGNORECASE)
_BAND = re.compile(rf"(?P<percent>{_NUMBER})%")
_RULE = "write 400000, 400K, 2.1M or 36% (of the teacher), macs=90M, or params=400K,macs=90M"


@dataclass(frozen=True)
class Budget:
    """Limits on parameters and MACs.

    Attributes:
        params, macs: an int is a count; a float in (0, 1] is a share of the teacher's; None is no limit.
        tolerance: None for caps; t in (0, 1) for bands within t of the figures on both sides.

    Raises:
        BudgetError: no limit at all, or a figure or tolerance out of its range.

    Example:
        >>> Budget.parse("400K", tolerance=0.025)
        Budget(params=400000, macs=None, tolerance=0.025)
        >>> str(Budget.parse("macs=90M,params=36%"))
        'params=36%,macs=90M'
    """

    params: int | float | None = None
    macs: int | float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not self.limits:
            raise BudgetError(f"a budget limits parameters, MACs or both; {_RULE}.")
        for resource, figure in self.limits.items():
            if isinstance(figure, float) and not 0 < figure <= 1:
                raise BudgetError(f"{resource}={figure} is no share of the teacher; give one up to 1, or an integer.")
            if figure <= 0:
                raise BudgetError(f"{resource}={figure} leaves room for nothing; give a positive figure.")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise BudgetError(f"the tolerance must lie between 0 and 1, as 0.025 for 2.5 %; it is {self.tolerance}.")

    @classmethod
    def parse(cls, text: str | int, tolerance: float | None = None) -> "Budget":
        """Read a budget as a person writes it.

        Args:
            text: ``400000``, ``"400K"``, ``"2.1M"``, ``"0.81G"``, ``"36%"`` (of the teacher), ``"macs=90M"`` or
                ``"params=400K,macs=90M"``. A bare figure means parameters; K, M, G are powers of 1000. A tolerance may
                follow, as ``str`` writes it: ``"400K+-2.5%"``.
            tolerance: None for caps, or the bands' t in (0, 1).

        Raises:
            BudgetError: ``text`` is no budget, or its band is not ``tolerance``.
        """
        body, sign, band = "".join(str(text).split()).partition("+-")
        written = _BAND.fullmatch(band)
        limits: dict[str, int | float] = {}
        for part in body.split(","):
            match = _LIMIT.fullmatch(part)
            if match is None or (sign and written is None):
                raise BudgetError(f"'{text}' is not a budget; {_RULE}.")
            resource = (match["resource"] or "params").lower()
            if resource in limits:
                raise BudgetError(f"'{text}' limits {resource} twice; {_RULE}.")
            limits[resource] = _figure(match["number"], match["unit"].upper())
        if written is not None:
            own = float(Decimal(written["percent"]) / 100)
            if tolerance not in (None, own):
                raise BudgetError(f"'{text}' has a tolerance of its own, which is not {tolerance}; give one of them.")
            tolerance = own
        return cls(**limits, tolerance=tolerance)

    @property
    def limits(self) -> dict[str, int | float]:
        """The figures that are set, by resource."""
        return {name: figure for name, figure in (("params", self.params), ("macs", self.macs)) if figure is not None}

    def bounds(self, table: "CostTable") -> dict[str, tuple[int, int]]:
        """Least and greatest total allowed of each limited resource, both inclusive; the least of a cap is 0."""
        return {resource: self._window(resource, figure, table) for resource, figure in self.limits.items()}

    def _window(self, resource: str, figure: int | float, table: "CostTable") -> tuple[int, int]:
        target = _exact(figure)
        if isinstance(figure, float):
            target *= table.original(resource)
        if self.tolerance is None:
            return 0, floor(target)
        margin = target * _exact(self.tolerance)
        return ceil(target - margin), floor(target + margin)

    def __str__(self) -> str:
        """Short label for file names and tables; ``parse`` reads it back."""
        spelled = {resource: _spell(figure) for resource, figure in self.limits.items()}
        label = ",".join(f"{resource}={text}" for resource, text in spelled.items())
        if spelled.keys() == {"params"}:
            label = spelled["params"]
        return label if self.tolerance is None else f"{label}+-{_percent(self.tolerance)}"


def _figure(number: str, unit: str) -> int | float:
    if unit == "%":
        return float(Decimal(number) / 100)
    figure = Decimal(number) * _UNITS[unit]
    if figure != int(figure):
        raise BudgetError(f"a budget is a whole number, and {number}{unit} is {_plain(figure)}; {_RULE}.")
    return int(figure)


def _exact(number: float) -> Fraction:
    """The decimal that was written, so that 5 % of 100 is 5 and not a hair more."""
    return Fraction(str(number))


def _spell(figure: int | float) -> str:
    if isinstance(figure, float):
        return _percent(figure)
    return min((f"{_plain(Decimal(figure) / size)}{unit}" for unit, size in _UNITS.items() if figure >= size), key=len)


def _percent(share: float) -> str:
    return f"{_plain(Decimal(str(share)) * 100)}%"


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
