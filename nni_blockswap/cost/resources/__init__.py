"""What an architecture can cost, a file a resource: its name, its unit, how it is read off modules that run."""

from nni_blockswap.cost.resources.base import Measured, Resource
from nni_blockswap.errors import BudgetError
from nni_blockswap.registry import Registry

__all__ = ["RESOURCES", "Measured", "Resource", "unit_of"]

RESOURCES: Registry[Resource | Measured] = Registry(
    "resource",
    {
        "params": f"{__name__}.params:PARAMS",
        "macs": f"{__name__}.macs:MACS",
        "latency": f"{__name__}.latency:LATENCY",
        "onnx_latency": f"{__name__}.latency:ONNX_LATENCY",
    },
    BudgetError,
)


def unit_of(name: str) -> str:
    """What a number of a resource counts; its name where this process does not know it, as one of a file's maker."""
    return RESOURCES[name].unit if name in RESOURCES else name
