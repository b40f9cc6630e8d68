"""Euclidean norms of the layers' gradients, summed ("grad_norm" of Abdelfattah et al., ICLR 2021)."""

from typing import ClassVar

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score, connections, gradients
from nni_blockswap.tasks import Batch, Task


class GradL2:
    """sum_l ||dLoss / dW_l||_2 over convolutions and linear layers l."""

    name: ClassVar[str] = "grad_l2"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = True

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """One forward and one full backward pass."""
        found = gradients(task.loss(network, batch), connections(network).values())
        return Score(sum(float(gradient.norm()) for _, gradient in found))
