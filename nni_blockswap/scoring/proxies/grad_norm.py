"""Summed absolute gradients of the weights (Golub et al., 2019), a metric of the paper's Table 1."""

from typing import ClassVar

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score, gradients
from nni_blockswap.tasks import Batch, Task


class GradNorm:
    """sum_w |dLoss / dw| over all weights of the architecture."""

    name: ClassVar[str] = "grad_norm"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = True

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """One forward and one full backward pass."""
        found = gradients(task.loss(network, batch), network.active_parameters())
        return Score(sum(gradient.abs().sum().item() for _, gradient in found))
