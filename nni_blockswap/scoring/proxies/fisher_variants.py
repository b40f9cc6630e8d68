"""Fisher potential, summed in other ways: by channel, by block in logarithms, over draws in logarithms."""

import math
from collections.abc import Sequence
from typing import ClassVar

from nni_blockswap.scoring.proxies.base import Score, logarithm
from nni_blockswap.scoring.proxies.fisher import OfFisherInformation


class ChannelFisher(OfFisherInformation):
    """sum_b Delta_b / C_b: the mean over the channels of each block, so that wide blocks weigh no more than narrow."""

    name: ClassVar[str] = "fisher_channel"

    def score(self, information: Sequence[float], channels: Sequence[int]) -> Score:
        terms = tuple(one / width for one, width in zip(information, channels, strict=True))
        return Score(sum(terms), terms)


class BlockLogFisher(OfFisherInformation):
    """Mean of log Delta_b over the blocks b that have any information: the geometric mean, so that no block dominates.

    A mean over draws of the weights is one of logarithms, too.
    """

    name: ClassVar[str] = "fisher_log"

    def score(self, information: Sequence[float], channels: Sequence[int]) -> Score:
        count = sum(one != 0 for one in information)
        terms = tuple(logarithm(one) / count if one != 0 else 0.0 for one in information)
        return Score(sum(terms) if count else -math.inf, terms)


class DrawLogFisher(OfFisherInformation):
    """log sum_b Delta_b: ranks as Fisher potential does in one draw; a mean over draws is one of logarithms.

    Fisher information of a draw is a product of many random factors; the logarithm keeps a lucky draw from deciding.
    """

    name: ClassVar[str] = "fisher_draws"

    def score(self, information: Sequence[float], channels: Sequence[int]) -> Score:
        return Score(logarithm(sum(information)))
