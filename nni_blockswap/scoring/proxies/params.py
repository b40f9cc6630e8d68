"""The number of parameters, which costs nothing: what any proxy has to beat."""

from typing import ClassVar

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score
from nni_blockswap.tasks import Batch, Task


class Params:
    """All parameters of the selected architecture, as its cost counts them; the batch plays no part."""

    name: ClassVar[str] = "params"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """No pass at all."""
        return Score(float(sum(parameter.numel() for parameter in network.active_parameters())))
