"""The protocol of a proxy: a number that stands for the error a network would reach, had it been trained."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.tasks import Batch, Task


@dataclass(frozen=True)
class Score:
    """What a proxy says of one architecture: the number that ranks it and, where it is a sum over blocks, its terms."""

    value: float
    blocks: tuple[float, ...] = ()


class Proxy(Protocol):
    """Measures one architecture on one prepared batch.

    In time: for each draw of the weights and each candidate the scorer selects the candidate in the super-network,
    trains it for some minibatches if asked to, freezes or frees its weights as ``needs_weight_gradients`` says, and
    calls ``measure`` once a minibatch. The network is in training mode; ``measure`` must not change its weights.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs_weight_gradients: ClassVar[bool]

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """Score of the architecture that ``network`` has selected, on ``batch``."""
