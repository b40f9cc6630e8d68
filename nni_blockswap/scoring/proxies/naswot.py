"""NASWOT: how differently a network's rectifiers answer to different images (Mellor et al., ICML 2021)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score
from nni_blockswap.tasks import Batch, Task

RECTIFIERS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
        F.relu6, F.hardtanh, F.leaky_relu, F.prelu, F.elu, F.silu, F.gelu, F.hardswish, F.mish,
    }
)  # fmt: skip
"""Functions that let positive values pass and hold negative ones back, however modules or networks call them.

``nn.ReLU6`` calls ``hardtanh``.
"""


class Naswot:
    """log |det K|, where K_ij counts the rectified units that are on for both or off for both of the images i and j.

    With c_i the binary code of image i over all N_A units, K_ij = N_A - hamming(c_i, c_j) (equation 2). Every call of
    ``RECTIFIERS`` counts, a module's or a function's, whose first dimension is that of the batch. Two images of one
    code make K singular: the score is -inf. Labels play no part. It grows with the batch: compare at equal N.
    """

    name: ClassVar[str] = "naswot"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    @torch.no_grad()
    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """One forward pass."""
        with Kernel(len(batch[0])) as kernel:
            loss = task.loss(network, batch)
        value = float(torch.linalg.slogdet(kernel.total.cpu())[1])
        return Score(value if bool(loss.isfinite()) else math.nan)


class Kernel(TorchFunctionMode):
    """While it is entered, adds up K over the rectifiers that are called on ``images`` images.

    ``total`` (images, images), float64: K so far.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.total = torch.zeros(images, images, dtype=torch.float64)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in RECTIFIERS:
            x: Tensor = args[0] if args else kwargs["input"]
            if x.dim() and len(x) == len(self.total):
                self.total = self.total.to(x.device) + agreement(x > 0)
        return func(*args, **kwargs)


def agreement(on: Tensor) -> Tensor:
    """How many units two images share the state of.

    Args:
        on: (N, ...), bool.

    Returns:
        (N, N), float64: exact, as sums of up to 2^24 signs are in float32.

    Example:
        >>> agreement(torch.tensor([[True, True, False], [True, False, False]])).tolist()
        [[3.0, 2.0], [2.0, 3.0]]
    """
    with torch.autocast(on.device.type, enabled=False):
        signs = on.flatten(1).float() * 2 - 1
        return (signs.shape[1] + (signs @ signs.T).double()) / 2
