"""What numbers a setting takes: whole ones or any, from where to where; never an infinite one or none at all."""

import math
from dataclasses import dataclass
from typing import Any

from nni_blockswap.errors import ConfigError, shown
from nni_blockswap.finite import is_finite


@dataclass(frozen=True)
class Range:
    """Numbers above 0, or from 0 on where ``from_zero``, and below ``below``.

    Example:
        >>> Range(below=1).check("--momentum", 1.5)
        Traceback (most recent call last):
        nni_blockswap.errors.ConfigError: --momentum must be below 1, not 1.5.
    """

    from_zero: bool = False
    below: float = math.inf
    whole: bool = False

    def check(self, name: str, value: object) -> None:
        """Raise ConfigError unless ``value`` is one of them; ``name`` is the setting as its user spells it."""
        kind = "a whole number" if self.whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise ConfigError(f"{name} must be {kind}, not {shown(value)}.")
        if not is_finite(value):
            raise ConfigError(f"{name} must be finite, which {shown(value)} is not.")
        if self.from_zero and value < 0:
            raise ConfigError(f"{name} must not be negative, as {value} is.")
        if not self.from_zero and value <= 0:
            raise ConfigError(f"{name} must be above 0, not {value}.")
        if value >= self.below:
            raise ConfigError(f"{name} must be below {self.below:g}, not {value}.")


COUNT, POSITIVE, WEIGHT = Range(whole=True), Range(), Range(from_zero=True)
SHARE = Range(from_zero=True, below=1)


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """Raise ConfigError unless ``value`` is a ``COUNT``, and no more than ``most``."""
    COUNT.check(name, value)
    if most is not None and value > most:
        raise ConfigError(f"{name} is at most {most:,}, not {shown(value)}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{name} is one of {', '.join(choices)}, not {value!r}.")
