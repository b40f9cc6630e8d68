"""Squared l2 norm of the weights, a metric of the paper's Table 1."""

from typing import ClassVar

import torch

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score
from nni_blockswap.tasks import Batch, Task


class L2Norm:
    """sum_w w^2 over all weights of the architecture; the batch plays no part unless there was training before."""

    name: ClassVar[str] = "l2_norm"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    @torch.no_grad()
    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """No pass at all."""
        return Score(sum(float(weight.square().sum()) for weight in network.active_parameters()))
