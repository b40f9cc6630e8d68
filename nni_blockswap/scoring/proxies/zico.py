"""ZiCo: gradients that agree from minibatch to minibatch (Li et al., ICLR 2023)."""

from collections.abc import Iterator
from typing import ClassVar

import torch

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies.base import Score, connections, gradients, logarithm
from nni_blockswap.tasks import Batch, Task

PARTS = 4
"""Minibatches that a batch is split into; the authors take two whole ones."""


class ZiCo:
    """sum_l log sum_w mean_i |g_iw| / std_i(g_iw) over the weights w of each layer l, g_i the gradient on part i.

    The inverse coefficient of variation of the gradients (their equation 7) over the ``PARTS`` parts of the batch. As
    in the authors' code the standard deviation is that of the gradient (the formula has |g|), divides by the number of
    parts, and a weight whose gradient does not vary is left out.
    """

    name: ClassVar[str] = "zico"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = True

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """A forward and a full backward pass of each part. Raises ConfigError for a batch of fewer images."""
        weights = connections(network).values()
        losses = (task.loss(network, part) for part in split(batch, PARTS))
        of_parts = [[gradient for _, gradient in gradients(loss, weights)] for loss in losses]
        value = 0.0
        for layer in zip(*of_parts, strict=True):
            stacked = torch.stack(layer)
            deviation = stacked.std(0, correction=0)
            ratio = stacked.abs().mean(0) / deviation
            value += logarithm(float(ratio[deviation != 0].sum()))  # NaN is no 0, and stays
        return Score(value)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """``batch``, which is images and targets, in ``parts`` of equal size; what is over is left out.

    Raises:
        ConfigError: there are fewer images than parts.
    """
    size = len(batch[0]) // parts
    if not size:
        raise ConfigError(f"the proxy 'zico' needs a batch of at least {parts} images, not {len(batch[0])}.")
    for start in range(0, size * parts, size):
        yield tuple(content[start : start + size] for content in batch)
