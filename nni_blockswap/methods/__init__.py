"""How a search decides which architectures to score, a file a method."""

import inspect
from collections.abc import Callable
from typing import Any, cast

from nni_blockswap.errors import ConfigError, shown
from nni_blockswap.methods.base import Method, Problem, Request
from nni_blockswap.registry import Registry

__all__ = ["METHODS", "Method", "Request", "method_named"]

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        "uniform": f"{__name__}.uniform:Uniform",
        "additive": f"{__name__}.additive:Additive",
        "evolution": f"{__name__}.evolution:Evolution",
        "halving": f"{__name__}.halving:Halving",
    },
)
"""The first, the paper's, is the default."""


def method_named(name: str) -> Callable[[Problem], Method]:
    """What makes the method called ``name``, or the one that a name written "module:Class" stands for.

    Raises:
        ConfigError: there is none, it cannot be imported, or it is no method.
    """
    found: Any = METHODS[name]
    try:
        inspect.signature(found).bind(None)  # of a problem
        lacking = [part for part in ("ask", "tell") if isinstance(found, type) and not hasattr(found, part)]
    except (TypeError, ValueError):
        lacking = ["__init__(problem)"]
    if lacking:
        raise ConfigError(
            f"a method is a class with __init__(problem), ask() and tell(scores), and '{name}', {shown(found)}, has no "
            f"{lacking[0]}; see nni_blockswap/methods/base.py."
        )
    return cast(Callable[[Problem], Method], found)
