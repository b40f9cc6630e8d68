"""How a search decides which architectures to score, a file a method."""

from nni_blockswap.methods.base import Method, Request
from nni_blockswap.registry import Registry

__all__ = ["METHODS", "Method", "Request"]

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
