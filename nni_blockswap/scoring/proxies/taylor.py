"""Saliency of activations: SNIP's measure, taken of what leaves a block instead of the weights."""

from typing import ClassVar

import torch

from nni_blockswap.blocks.shells import probed
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score, gradients_at_probes
from nni_blockswap.tasks import Batch, Task


class Taylor:
    """sum_b 1 / C_b sum_ncij |a * dLoss / da| over the output a of each block's last convolution, C_b channels wide.

    |a g| is to first order what the loss would change by if a were 0 (Molchanov et al., *Pruning Convolutional Neural
    Networks for Resource Efficient Inference*, ICLR 2017, who take it of a whole channel). Fisher information adds a g
    over the positions of a channel before it is squared; here nothing cancels. The mean over the channels lets wide
    blocks weigh no more than narrow ones, as in ``fisher_channel``.
    """

    name: ClassVar[str] = "taylor"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """One forward pass, and a backward pass to the probes alone."""
        with probed(network.blocks()) as activations:
            loss = task.loss(network, batch)
        gradients = gradients_at_probes(loss, network, activations)
        terms = tuple(
            float((a.detach() * g).abs().sum(dtype=torch.promote_types(a.dtype, torch.float32))) / a.shape[1]
            for a, g in zip(activations, gradients, strict=True)
        )
        return Score(sum(terms), terms)
