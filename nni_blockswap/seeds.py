"""Seeds: which ones there are, and how one makes many."""

from nni_blockswap.errors import ConfigError

LARGEST = 2**32 - 1
"""Of a user's seeds; what is derived from them stays below torch's limit of 2^63."""


def derived_seed(seed: int, index: int) -> int:
    """The ``index``-th seed that ``seed`` makes: no two alike, below a million of them.

        derived = 1,000,003 seed + index

    Args:
        seed: a user's.
        index: from 0, of an epoch, a minibatch, a draw of the weights.

    Example:
        >>> derived_seed(3, 2)
        3000011
    """
    return seed * 1_000_003 + index


def check_seed(seed: object, option: str) -> None:
    """Raise ConfigError unless ``seed``, given as ``option``, is a whole number that torch and NumPy both take."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LARGEST:
        raise ConfigError(f"{option} must be a whole number from 0 to {LARGEST}, not {seed!r}.")
