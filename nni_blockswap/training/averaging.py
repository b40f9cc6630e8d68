"""An exponential moving average of a network's weights, which is often better than the last of them.

    d_t = min(decay, (1 + t) / (10 + t)),    average_t = d_t average_(t-1) + (1 - d_t) weights_t,    t = 1, 2, ...

and average_0 = weights_0, those after the first step. The decay grows into its value, so that a short run's average
does not hang on its first steps. Of whole numbers among the buffers, and of buffers that begin with an infinity, the
last is taken.

Source: Polyak and Juditsky, 1992; the growing decay as in TensorFlow's ``ExponentialMovingAverage``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nni_blockswap.errors import ConfigError


class _Average(AveragedModel):
    """An average in which buffers that hold an infinity, as masks do, are copied: inf - inf is no number."""

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__(network, **options)
        self._masks = [name for name, value in network.named_buffers() if bool(value.isinf().any())]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        super().update_parameters(model)
        for name in self._masks:
            self.module.get_buffer(name).copy_(model.get_buffer(name))


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``network`` that ``update_parameters(network)`` moves towards it; it is never trained itself.

    Raises:
        ConfigError: the network cannot be copied, as one with masked weights.
    """

    @torch.no_grad()
    def move(average: Sequence[Tensor], current: Sequence[Tensor], updates: Any) -> None:
        share = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        for mean, value in zip(average, current, strict=True):
            mean.lerp_(value, share) if mean.is_floating_point() else mean.copy_(value)

    try:
        average = _Average(network, multi_avg_fn=move, use_buffers=True)
    except RuntimeError as error:  # a weight that is computed from others is no leaf and has no copy
        raise ConfigError(f"--ema needs weights of their own ({str(error).partition('.')[0]}).") from error
    average.requires_grad_(False)
    return average
