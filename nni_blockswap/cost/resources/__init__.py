"""What an architecture can cost, a file a resource: its name, its unit, how it is read off modules that run."""

from nni_blockswap.cost.resources.base import Measured, Resource
from nni_blockswap.errors import BudgetError
from nni_blockswap.registry import Registry

__all__ = ["RESOURCES", "Measured", "Resource"]

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
