"""Budgets: how much of each resource an architecture may cost.

A budget limits one resource or several, in absolute figures or as a share of the teacher, the network with ``S`` in
every block, whatever the search space is narrowed to. Without a tolerance each figure is a cap. With a tolerance t each
is the middle of a band:

    cap:   0 <= cost <= figure            band:   (1 - t) figure <= cost <= (1 + t) figure
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

from nni_blockswap.cost.resources import RESOURCES
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import BudgetError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_NUMBER = r"\d{1,24}(?:\.\d{1,24})?"
_RESOURCE = r"[a-z_]\w*|[\w.]+:[\w.]+"
_LIMIT = re.compile(rf"(?:(?P<resource>{_RESOURCE})=)?(?P<number>{_NUMBER})(?P<unit>[a-z%]*)", re.IGNORECASE)
_BAND = re.compile(rf"(?P<percent>{_NUMBER})%")
_RULE = "write 400000, 400K, 2.1M or 36% (of the teacher), macs=90M, or params=400K,macs=90M"


@dataclass(frozen=True, init=False)
class Budget:
    """Limits on resources.

    Attributes:
        limits: (resource, figure) of each limited one, in the order of the registry: an int is a count; a float in
            (0, 1] is a share of the teacher's.
        tolerance: None for caps; t in (0, 1) for bands within t of the figures on both sides.

    Raises:
        BudgetError: no limit at all, or a figure or tolerance out of its range.

    Example:
        >>> Budget.parse("400K", tolerance=0.025)
        Budget(params=400000, tolerance=0.025)
        >>> str(Budget.parse("macs=90M,params=36%"))
        'params=36%,macs=90M'
    """

    limits: tuple[tuple[str, int | float], ...]
    tolerance: float | None

    def __init__(self, *, tolerance: float | None = None, **limits: int | float | None) -> None:
        given = {name: figure for name, figure in limits.items() if figure is not None}
        if not given:
            raise BudgetError(f"a budget limits at least one resource, parameters or MACs say; {_RULE}.")
        for resource, figure in given.items():
            if isinstance(figure, float) and not 0 < figure <= 1:
                raise BudgetError(f"{resource}={figure} is no share of the teacher; give one up to 1, or an integer.")
            if figure <= 0:
                raise BudgetError(f"{resource}={figure} leaves room for nothing; give a positive figure.")
        if tolerance is not None and not 0 < tolerance < 1:
            raise BudgetError(f"the tolerance must lie between 0 and 1, as 0.025 for 2.5 %; it is {tolerance}.")
        known = list(RESOURCES)
        order = sorted(given, key=lambda name: (known.index(name) if name in known else len(known), name))
        object.__setattr__(self, "limits", tuple((name, given[name]) for name in order))
        object.__setattr__(self, "tolerance", tolerance)

    def __repr__(self) -> str:
        tolerance = () if self.tolerance is None else (("tolerance", self.tolerance),)
        return f"Budget({', '.join(f'{name}={figure!r}' for name, figure in (*self.limits, *tolerance))})"

    @classmethod
    def parse(cls, text: str | int, tolerance: float | None = None) -> "Budget":
        """Read a budget as a person writes it.

        Args:
            text: ``400000``, ``"400K"``, ``"2.1M"``, ``"0.81G"``, ``"36%"`` (of the teacher), ``"macs=90M"`` or
                ``"params=400K,macs=90M"``. A bare figure means parameters; K, M, G are powers of 1000; a resource from
                outside this package is named as "module:attribute". A tolerance may follow, as ``str`` writes it:
                ``"400K+-2.5%"``.
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
            resource = _resource(match["resource"] or "params")
            if resource is None:
                raise BudgetError(f"'{text}' is not a budget; {_RULE}. Resources are {', '.join(RESOURCES)}.")
            if resource in limits:
                raise BudgetError(f"'{text}' limits {resource} twice; {_RULE}.")
            limits[resource] = _figure(text, match["number"], match["unit"], resource)
        if written is not None:
            own = float(Decimal(written["percent"]) / 100)
            if tolerance not in (None, own):
                raise BudgetError(f"'{text}' has a tolerance of its own, which is not {tolerance}; give one of them.")
            tolerance = own
        return cls(tolerance=tolerance, **limits)

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of what is limited."""
        return tuple(name for name, _ in self.limits)

    def bounds(self, table: Table) -> dict[str, tuple[int, int]]:
        """Least and greatest total allowed of each limited resource, both inclusive; the least of a cap is 0."""
        return {resource: self._window(resource, figure, table) for resource, figure in self.limits}

    def unused(self, table: Table, costs: Mapping[str, int]) -> dict[str, float]:
        """The share of the most allowed of each limited resource that an architecture with ``costs`` leaves over."""
        return {resource: 1 - costs[resource] / most for resource, (_, most) in self.bounds(table).items()}

    def _window(self, resource: str, figure: int | float, table: Table) -> tuple[int, int]:
        target = _exact(figure)
        if isinstance(figure, float):
            target *= table.original(resource)
        if self.tolerance is None:
            return 0, floor(target)
        margin = target * _exact(self.tolerance)
        return ceil(target - margin), floor(target + margin)

    def __str__(self) -> str:
        """Short label for file names and tables; ``parse`` reads it back."""
        spelled = {resource: _spell(resource, figure) for resource, figure in self.limits}
        label = ",".join(f"{resource}={text}" for resource, text in spelled.items())
        if spelled.keys() == {"params"}:
            label = spelled["params"]
        return label if self.tolerance is None else f"{label}+-{_percent(self.tolerance)}"


def _resource(name: str) -> str | None:
    """The name of a resource, in any case, or of what an import path names; None where there is none."""
    if ":" in name:
        found = RESOURCES[name]
        RESOURCES.register(found.name, found)
        return found.name
    return name.lower() if name.lower() in RESOURCES else None


def _figure(text: str | int, number: str, unit: str, resource: str) -> int | float:
    if unit == "%":
        return float(Decimal(number) / 100)
    size = _UNITS.get(unit.upper())
    if size is None:
        size = RESOURCES[resource].suffixes.get(unit)
    if size is None:
        raise BudgetError(f"'{text}' is not a budget; {_RULE}.")
    figure = Decimal(number) * size
    if figure != int(figure):
        raise BudgetError(f"a budget is a whole number, and {number}{unit} is {_plain(figure)}; {_RULE}.")
    return int(figure)


def _exact(number: float) -> Fraction:
    """The decimal that was written, so that 5 % of 100 is 5 and not a hair more."""
    return Fraction(str(number))


def _spell(resource: str, figure: int | float) -> str:
    if isinstance(figure, float):
        return _percent(figure)
    own = RESOURCES[resource].suffixes if resource in RESOURCES else {}
    units = {"": 1, **own} if own else _UNITS
    return min((f"{_plain(Decimal(figure) / size)}{unit}" for unit, size in units.items() if figure >= size), key=len)


def _percent(share: float) -> str:
    return f"{_plain(Decimal(str(share)) * 100)}%"


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
