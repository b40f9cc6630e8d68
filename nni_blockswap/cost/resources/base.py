"""The protocol of a resource."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # reading a budget needs no torch
    from torch import nn

    from nni_blockswap.cost.table import Column, Table


class Resource(Protocol):
    """Something of which every part of a network takes a whole number, and an architecture the sum.

    A table of costs asks ``read`` twice: for each candidate of each block, and once for the modules in no block:

        cost(architecture) = read(the rest) + sum_b read(candidate of block b)
    """

    name: str
    """As budgets and tables have it, ``macs``."""

    unit: str
    """What a number of it counts, in the plural: ``MACs``."""

    suffixes: Mapping[str, int]
    """Units in which budgets may be written, beside K, M and G: ``{"ms": 1000}`` where one is a microsecond."""

    def read(self, modules: "Sequence[nn.Module]", run: Callable[[], object]) -> int:
        """What ``modules`` take.

        Args:
            modules: every module that counts, each with its own parameters and hooks alone, on the meta device.
            run: runs them on one image, as often as it is called.
        """


class RealNetwork(Protocol):
    """A super-network that can run (``blocks.space.BlockSpace``), as far as one asks who measures it."""

    input_size: Sequence[int]

    def blocks(self) -> Sequence[Any]: ...
    def select(self, choices: Mapping[str, str]) -> None: ...
    def run_counted(self, batch_size: int = 1) -> None: ...
    def to(self, *where: Any, **what: Any) -> Any: ...


@runtime_checkable
class Measured(Protocol):
    """A resource that no single part tells, and that is measured on real modules: all candidates, side by side."""

    name: str
    unit: str
    suffixes: Mapping[str, int]

    def measure(self, build: "Callable[[], RealNetwork]", counted: "Table") -> "Column":
        """What every candidate takes.

        Args:
            build: makes the super-network, its weights and all; nothing is allocated until it is called.
            counted: the space's table with its counted resources.
        """
