"""Fisher potential: the paper's proxy (sections 3.3 and 4)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nni_blockswap.blocks.shells import probed
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score, gradients_at_probes
from nni_blockswap.tasks import Batch, Task

CACHED = 1 << 18
"""Products taken at a time on a CPU, so that they stay in its cache until they are summed."""


def fisher_information(activations: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Empirical Fisher information of blocks, equations (2) and (3).

    With a an activation of a block and g the gradient of the loss with respect to it,

        Delta_c = 1 / (2N) * sum_n ( sum_ij a_ncij * g_ncij )^2        for channel c        (2)
        Delta_b = sum_c Delta_c                                        for block b          (3)

    Args:
        activations: a tensor (N, C, H, W) for each block; blocks may differ in C, H and W.
        gradients: the gradients of a mean loss, shaped alike.

    Returns:
        (blocks,), in float32, or in float64 for inputs in float64. It grows with the batch size: compare at equal N.

    Raises:
        ValueError: the two sequences differ in length or in a shape.

    Example:
        >>> a = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])  # N = 2, C = 1, H = 1, W = 2
        >>> fisher_information([a], [torch.ones_like(a)])  # (3^2 + 7^2) / (2 * 2)
        tensor([14.5000])
    """
    blocks = []
    for activation, gradient in zip(activations, gradients, strict=True):
        if activation.shape != gradient.shape:
            raise ValueError(
                f"an activation {tuple(activation.shape)} has a gradient {tuple(gradient.shape)}; shapes must agree."
            )
        precision = torch.promote_types(activation.dtype, torch.float32)
        images = max(1, CACHED // activation[0].numel()) if activation.is_cpu else len(activation)
        pieces = zip(torch.split(activation, images), torch.split(gradient, images), strict=True)
        per_channel = torch.cat([(a.to(precision) * g.to(precision)).sum((2, 3)) for a, g in pieces])  # (N, C)
        blocks.append(per_channel.square().sum() / (2 * len(activation)))
    return torch.stack(blocks)


class OfFisherInformation(ABC):
    """Base of the proxies that see of a network its blocks' Fisher information, at the output of the last convolution.

    Engines that find the information in a faster way ask for ``score`` alone.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """One forward pass, and a backward pass to the probes alone."""
        with probed(network.blocks()) as activations:
            loss = task.loss(network, batch)
        gradients = gradients_at_probes(loss, network, activations)
        channels = [activation.shape[1] for activation in activations]
        return self.score(fisher_information(activations, gradients).tolist(), channels)

    @abstractmethod
    def score(self, information: Sequence[float], channels: Sequence[int]) -> Score:
        """From the Fisher information of each block, and the channels that it is a sum over."""


class FisherPotential(OfFisherInformation):
    """Sum of the Fisher information of all blocks."""

    name: ClassVar[str] = "fisher"

    def score(self, information: Sequence[float], channels: Sequence[int]) -> Score:
        return Score(sum(information), tuple(information))
