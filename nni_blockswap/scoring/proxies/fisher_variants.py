"""Fisher potential, summed in other ways: by channel, by block in logarithms, over draws in logarithms."""

import math
from typing import ClassVar

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score, logarithm
from nni_blockswap.scoring.proxies.fisher import block_information
from nni_blockswap.tasks import Batch, Task


class ChannelFisher:
    """sum_b Delta_b / C_b: the mean over the channels of each block, so that wide blocks weigh no more than narrow."""

    name: ClassVar[str] = "fisher_channel"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """As Fisher potential."""
        terms = tuple(information / channels for information, channels in block_information(network, task, batch))
        return Score(sum(terms), terms)


class BlockLogFisher:
    """Mean of log Delta_b over the blocks b that have any information: the geometric mean, so that no block dominates.

    A mean over draws of the weights is one of logarithms, too.
    """

    name: ClassVar[str] = "fisher_log"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """As Fisher potential."""
        information = [one for one, _ in block_information(network, task, batch)]
        count = sum(one != 0 for one in information)
        terms = tuple(logarithm(one) / count if one != 0 else 0.0 for one in information)
        return Score(sum(terms) if count else -math.inf, terms)


class DrawLogFisher:
    """log sum_b Delta_b: ranks as Fisher potential does in one draw; a mean over draws is one of logarithms.

    Fisher information of a draw is a product of many random factors; the logarithm keeps a lucky draw from deciding.
    """

    name: ClassVar[str] = "fisher_draws"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """As Fisher potential."""
        return Score(logarithm(sum(one for one, _ in block_information(network, task, batch))))
