"""SNIP: how much the loss hangs on each weight (Lee, Ajanthan & Torr, ICLR 2019, equation 6)."""

from typing import ClassVar

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score, connections, gradients
from nni_blockswap.tasks import Batch, Task


class Snip:
    """sum_w |w * dLoss / dw| over the weights of convolutions and linear layers.

    Lee et al. divide by this sum, to compare the weights of one network; to compare networks the sum itself is taken,
    as by Abdelfattah et al., *Zero-Cost Proxies for Lightweight NAS*, ICLR 2021.
    """

    name: ClassVar[str] = "snip"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = True

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """One forward and one full backward pass."""
        found = gradients(task.loss(network, batch), connections(network).values())
        return Score(sum(float((weight.detach() * gradient).abs().sum()) for weight, gradient in found))
