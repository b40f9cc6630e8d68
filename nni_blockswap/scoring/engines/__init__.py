"""Ways to a score, a file each; what they give is the same. The first that suits is taken."""

from nni_blockswap.registry import Registry
from nni_blockswap.scoring.engines.base import Engine, Measure, Work

__all__ = ["ENGINES", "Engine", "Measure", "Work", "choose", "described"]

ENGINES: Registry[Engine] = Registry(
    "engine",
    {
        "cuda-graphs": f"{__name__}.cuda_graphs:CUDA_GRAPHS",
        "cpu-layers": f"{__name__}.cpu_layers:CPU_LAYERS",
        "chain": f"{__name__}.chain:CHAIN",
        "plain": f"{__name__}.plain:PLAIN",
    },
)
"""By name, the fastest first; the last suits everything."""


def choose(work: Work) -> Engine:
    """The first engine that suits ``work``."""
    return next(engine for name in ENGINES if (engine := ENGINES[name]).suits(work))


def described(engine: Engine, work: Work) -> str:
    """For the user: which engine it is, and of the slowest why it is no faster one.

    Such as ``plain (network by network, as the loss is one's own)``.
    """
    from nni_blockswap.scoring.engines.chain import CHAIN  # it imports this

    reason = CHAIN.obstacle(work) if engine.name == "plain" else ""
    return f"{engine.name} ({engine.about}{', as ' if reason else ''}{reason})"
