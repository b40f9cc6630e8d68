"""Fisher potential under other initial weights, and at another place: variants for ``rank_causes.py``."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import PreActivationBlock
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies import Score
from nni_blockswap.scoring.proxies.fisher import fisher_information
from nni_blockswap.tasks import Batch, Task
from search_spaces.wide_resnet import WideResNetSpace


class DividedByGroups(WideResNetSpace):
    """Convolutions drawn with std sqrt(2 g / (k^2 C_out)): a grouped one passes on as much as a dense one."""

    @torch.no_grad()
    def redraw(self) -> None:
        """Scale what the constructor drew with C_out not divided by the groups."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(module.groups**0.5)


class FanIn(WideResNetSpace):
    """Convolutions drawn with std sqrt(2 g / (k^2 C_in)), as He et al. have it for the forward pass."""

    def redraw(self) -> None:
        """Draw anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


class AfterTheSum:
    """Fisher potential where branch and shortcut have met, in place of the end of the branch."""

    name: ClassVar[str] = "fisher_after_the_sum"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = True

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """One forward and one backward pass."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs.append(output)

        blocks = [module for module in network.modules() if isinstance(module, PreActivationBlock)]
        handles = [block.register_forward_hook(keep) for block in blocks]
        try:
            loss = task.loss(network, batch)
        finally:
            for handle in handles:
                handle.remove()
        found = fisher_information(outputs, torch.autograd.grad(loss, outputs)).tolist()
        return Score(sum(found), tuple(found))
