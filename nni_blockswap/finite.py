"""Numbers that can be computed with."""

import math


def is_finite(value: float) -> bool:
    """Whether ``value`` is neither infinite, nor no number, nor a whole number beyond what a float can hold.

    Example:
        >>> is_finite(1e308), is_finite(10**309), is_finite(float("nan"))
        (True, False, False)
    """
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
