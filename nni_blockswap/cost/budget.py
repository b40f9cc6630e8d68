"""Budgets: how much of each resource an architecture may cost.

A budget limits one resource or several, in absolute figures or as a share of the teacher, the network with ``S`` in
every block, whatever the search space is narrowed to. A plain figure is a cap that is used up: most of what costs less
costs far less. With a tolerance t each figure is the middle of a band; ``at_most`` lets in all that costs less:

    plain:      0.95 figure <= cost <= figure      with several figures: for one of them at least, all being caps
    tolerance:  (1 - t) figure <= cost <= (1 + t) figure
    at most:    0 <= cost <= figure
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Any

from nni_blockswap.cost.resources import RESOURCES
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import BudgetError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_NUMBER = r"\d{1,24}(?:\.\d{1,24})?"
_RESOURCE = r"[a-z_]\w*|[\w.]+:[\w.]+"
_LIMIT = re.compile(rf"(?:(?P<resource>{_RESOURCE})=)?(?P<number>{_NUMBER})(?P<unit>[a-z%]*)", re.IGNORECASE)
_BAND = re.compile(rf"(?P<percent>{_NUMBER})%")
_USED = Fraction(95, 100)
"""The share of a figure that a plain budget wants to be used."""
_PLAIN = "-5%"
"""What the label of a plain budget ends in."""
_PLAIN_LABEL = re.compile(rf".*[^+]{_PLAIN}")
_RULE = "write 400000, 400K, 2.1M or 36% (of the teacher), macs=90M, or params=400K,macs=90M"


@dataclass(frozen=True, init=False)
class Budget:
    """Limits on resources.

    Attributes:
        limits: (resource, figure) of each limited one, in the order of the registry: an int is a count; a float in
            (0, 1] is a share of the teacher's.
        tolerance: t in (0, 1) for bands within t of the figures on both sides, or None.
        at_most: whether the figures are caps and nothing else.

    Raises:
        BudgetError: no limit at all, a figure or tolerance out of its range, or both a tolerance and ``at_most``.

    Example:
        >>> Budget.parse("400K", tolerance=0.025)
        Budget(params=400000, tolerance=0.025)
        >>> str(Budget.parse("macs=90M,params=36%"))
        'params=36%,macs=90M-5%'
    """

    limits: tuple[tuple[str, int | float], ...]
    tolerance: float | None
    at_most: bool

    def __init__(self, *, tolerance: float | None = None, at_most: bool = False, **limits: int | float | None) -> None:
        given = {name: figure for name, figure in limits.items() if figure is not None}
        if not given:
            raise BudgetError(f"a budget limits at least one resource, parameters or MACs say; {_RULE}.")
        for resource, figure in given.items():
            if isinstance(figure, float) and not 0 < figure <= 1:
                raise BudgetError(f"{resource}={figure} is no share of the teacher; give one up to 1, or an integer.")
            if figure <= 0:
                raise BudgetError(f"{resource}={figure} leaves room for nothing; give a positive figure.")
        share: Any = tolerance  # a text, as YAML may have it, is neither a share nor a switch
        if at_most not in (True, False):
            raise BudgetError(f"at_most is true or false, not {at_most!r}.")
        if share is not None and (isinstance(share, str) or not 0 < share < 1):
            raise BudgetError(f"the tolerance must lie between 0 and 1, as 0.025 for 2.5 %; it is {tolerance!r}.")
        if tolerance is not None and at_most:
            raise BudgetError("a tolerance makes a band, and at_most takes everything below; give one of them.")
        known = list(RESOURCES)
        order = sorted(given, key=lambda name: (known.index(name) if name in known else len(known), name))
        object.__setattr__(self, "limits", tuple((name, given[name]) for name in order))
        object.__setattr__(self, "tolerance", tolerance)
        object.__setattr__(self, "at_most", at_most)

    def __repr__(self) -> str:
        tolerance = () if self.tolerance is None else (("tolerance", self.tolerance),)
        at_most = (("at_most", True),) if self.at_most else ()
        return f"Budget({', '.join(f'{name}={figure!r}' for name, figure in (*self.limits, *tolerance, *at_most))})"

    @classmethod
    def parse(cls, text: "str | int | Budget", tolerance: float | None = None, at_most: bool = False) -> "Budget":
        """Read a budget as a person writes it; one that was read already is itself.

        Args:
            text: ``400000``, ``"400K"``, ``"2.1M"``, ``"0.81G"``, ``"36%"`` (of the teacher), ``"macs=90M"`` or
                ``"params=400K,macs=90M"``. A bare figure means parameters; K, M, G are powers of 1000; a resource from
                outside this package is named as "module:attribute". A band may follow, as ``str`` writes it:
                ``"400K+-2.5%"`` for a tolerance, ``"400K-5%"`` for a plain budget.
            tolerance: the bands' t in (0, 1), or None.
            at_most: whether the figures are caps and nothing else.

        Raises:
            BudgetError: ``text`` is no budget, or its band is not what ``tolerance`` and ``at_most`` say.
        """
        if isinstance(text, Budget):
            if tolerance is not None or at_most:
                raise BudgetError(f"{text!r} says itself how much of it to use; leave out tolerance and at_most.")
            return text
        spelled = "".join(str(text).split())
        if _PLAIN_LABEL.fullmatch(spelled):
            if tolerance is not None or at_most:
                raise BudgetError(f"'{text}' says itself how much of it to use; leave out tolerance and at_most.")
            spelled = spelled.removesuffix(_PLAIN)
        body, sign, band = spelled.partition("+-")
        written = _BAND.fullmatch(band)
        limits: dict[str, int | float] = {}
        for part in body.split(","):
            match = _LIMIT.fullmatch(part)
            if match is None or (sign and written is None):
                raise BudgetError(f"'{text}' is not a budget; {_RULE}.")
            resource = known_resource(match["resource"] or "params", f"'{text}' is not a budget; {_RULE}")
            if resource in limits:
                raise BudgetError(f"'{text}' limits {resource} twice; {_RULE}.")
            limits[resource] = _figure(text, match["number"], match["unit"], resource)
        if written is not None:
            own = float(Decimal(written["percent"]) / 100)
            if tolerance not in (None, own):
                raise BudgetError(f"'{text}' has a tolerance of its own, which is not {tolerance}; give one of them.")
            tolerance = own
        return cls(tolerance=tolerance, at_most=at_most, **limits)

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of what is limited."""
        return tuple(name for name, _ in self.limits)

    def bounds(self, table: Table) -> dict[str, tuple[int, int]]:
        """Least and greatest total allowed of each limited resource, both inclusive; the least of a cap is 0."""
        (first, *others) = self.boxes(table)
        return {name: (0, high) for name, (_, high) in first.items()} if others else first

    def boxes(self, table: Table) -> list[dict[str, tuple[int, int]]]:
        """What meets the budget, as boxes that have nothing in common: a window of totals for each limited resource.

        There is one, but for a plain budget of several figures: in the i-th box it is the i-th that is used up, and
        those before it are not.
        """
        figures = {resource: self._total(resource, figure, table) for resource, figure in self.limits}
        if self.at_most:
            return [{name: (0, floor(figure)) for name, figure in figures.items()}]
        if self.tolerance is not None:
            share = _exact(self.tolerance)
            return [{name: (ceil(f * (1 - share)), floor(f * (1 + share))) for name, f in figures.items()}]
        caps = {name: (0, floor(figure)) for name, figure in figures.items()}
        used = {name: (min(ceil(f * _USED), floor(f)), floor(f)) for name, f in figures.items()}
        left = {name: (0, least - 1) for name, (least, _) in used.items()}
        names = list(figures)
        return [
            {name: left[name] for name in names[:place]}
            | {name: used[name]}
            | {name: caps[name] for name in names[place + 1 :]}
            for place, name in enumerate(names)
        ]

    def capped(self) -> "Budget":
        """The same figures as caps, where they are not the middles of bands."""
        return self if self.tolerance is not None else Budget(at_most=True, **dict(self.limits))

    def admits(self, table: Table, costs: Mapping[str, int]) -> bool:
        """Whether an architecture with these totals meets the budget."""
        return any(all(low <= costs[r] <= high for r, (low, high) in box.items()) for box in self.boxes(table))

    def unused(self, table: Table, costs: Mapping[str, int]) -> dict[str, float]:
        """The share of the most allowed of each limited resource that an architecture with ``costs`` leaves over."""
        allowed = {resource: most for resource, (_, most) in self.bounds(table).items()}
        return {resource: 1 - costs[resource] / most if most else 0.0 for resource, most in allowed.items()}

    def spelled_unused(self, table: Table, costs: Mapping[str, int]) -> str:
        """``unused`` for people: ``0.3% of params, 41.0% of macs unused``."""
        return f"{', '.join(f'{share:.1%} of {name}' for name, share in self.unused(table, costs).items())} unused"

    def describe(self, table: Table) -> str:
        """The totals allowed, for people: ``380,000 to 400,000 parameters``."""
        windows = [spell_window(table.column(name).unit, window) for name, window in self.bounds(table).items()]
        used = ", 95 % of one of them used" if len(self.boxes(table)) > 1 else ""
        return f"{' and '.join(windows)}{used}"

    def _total(self, resource: str, figure: int | float, table: Table) -> Fraction:
        return _exact(figure) * (table.original_cost(resource) if isinstance(figure, float) else 1)

    @property
    def figures(self) -> str:
        """The label without its band."""
        spelled = {resource: _spell(resource, figure) for resource, figure in self.limits}
        if spelled.keys() == {"params"}:
            return spelled["params"]
        return ",".join(f"{resource}={text}" for resource, text in spelled.items())

    def __str__(self) -> str:
        """Short label for tables; ``parse`` reads it back, that of caps with ``at_most``."""
        if self.tolerance is not None:
            return f"{self.figures}+-{_percent(self.tolerance)}"
        return self.figures if self.at_most else f"{self.figures}{_PLAIN}"

    @property
    def folder(self) -> str:
        """A name for files that every shell takes as it is: ``400K``, ``macs-20M-5pct``, ``params-36pct-at-most``."""
        cap = "-at-most" if self.at_most else ""
        band = cap if self.tolerance is None else f"-{_percent(self.tolerance)}"
        return re.sub(r"[^\w.]+", "-", f"{self.figures}{band}".replace("%", "pct"))


def spell_window(unit: str, window: tuple[int, int]) -> str:
    """``at most 400,000 parameters``, ``390,000 to 410,000 parameters``."""
    low, high = window
    return f"{f'{low:,} to' if low else 'at most'} {high:,} {unit}"


def known_resource(name: str, fault: str) -> str:
    """The name of a resource, in any case, or of what an import path names.

    Raises:
        BudgetError: there is none; it says ``fault``, and which there are.
    """
    if ":" in name:
        found: Any = RESOURCES[name]
        lacking = [one for one in ("name", "unit", "suffixes") if not hasattr(found, one)]
        lacking += [] if hasattr(found, "read") or hasattr(found, "measure") else ["read"]
        if lacking:
            raise BudgetError(f"the resource '{name}' has no {lacking[0]}; see nni_blockswap/cost/resources/base.py.")
        if re.fullmatch(r"[a-z_]\w*", str(found.name), re.IGNORECASE) is None:
            raise BudgetError(
                f"the resource '{name}' calls itself {found.name!r}, and budgets name one by letters, digits and _; "
                "rename it."
            )
        if RESOURCES.is_everywhere(found.name) and RESOURCES[found.name] is not found:
            raise BudgetError(f"the resource '{name}' calls itself {found.name}, as another one does; rename it.")
        RESOURCES.register(found.name, found)
        return str(found.name)
    spelled = next((known for known in RESOURCES if known.lower() == name.lower()), None)
    if spelled is None:
        raise BudgetError(f"{fault}. Resources are {', '.join(RESOURCES)}.")
    return spelled


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
        raise BudgetError(f"a budget is a whole number, and {number}{unit} is {_decimal(figure)}; {_RULE}.")
    return int(figure)


def _exact(number: float) -> Fraction:
    """The decimal that was written, so that 5 % of 100 is 5 and not a hair more."""
    return Fraction(str(number))


def _spell(resource: str, figure: int | float) -> str:
    if isinstance(figure, float):
        return _percent(figure)
    own = RESOURCES[resource].suffixes if resource in RESOURCES else {}
    units = {"": 1, **own} if own else _UNITS
    return min((f"{_decimal(Decimal(figure) / size)}{unit}" for unit, size in units.items() if figure >= size), key=len)


def _percent(share: float) -> str:
    return f"{_decimal(Decimal(str(share)) * 100)}%"


def _decimal(number: Decimal) -> str:
    return f"{number.normalize():f}"
