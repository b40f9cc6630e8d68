"""What an architecture costs, as a proxy: nothing has to be run, and any other proxy has to beat it."""

from typing import ClassVar

import torch
from torch import nn
from torch.func import functional_call

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.cost.resources.macs import MACS
from nni_blockswap.scoring.proxies.base import Score
from nni_blockswap.tasks import Batch, Task


class Params:
    """All parameters of the selected architecture, as a budget counts them; the batch plays no part."""

    name: ClassVar[str] = "params"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """No pass at all."""
        return Score(float(sum(parameter.numel() for parameter in network.active_parameters())))


class Macs:
    """Multiply-accumulates for one image, as a budget counts them; the batch plays no part.

    At equal parameters those networks have more of them that work at higher resolution.
    """

    name: ClassVar[str] = "macs"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """A pass on the meta device, where nothing is computed."""
        counted = _Counted(network)
        meta = {name: torch.empty_like(value, device="meta") for name, value in counted.state_dict().items()}
        modules = list(network.modules())
        return Score(float(MACS.read(modules, lambda: functional_call(counted, meta, ()))))


class _Counted(nn.Module):
    """The part of a space's network whose MACs are counted."""

    def __init__(self, network: BlockSpace) -> None:
        super().__init__()
        self.network = network

    def forward(self) -> None:
        self.network.run_counted()
