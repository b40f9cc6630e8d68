"""Synaptic flow: how strongly a network's paths of weights connect input and output (Tanaka et al., NeurIPS 2020)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.proxies.base import Score, check_classifies, connections, gradients, logarithm, one_tensor
from nni_blockswap.tasks import Batch, Task

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Synflow:
    """log sum_w |w| dR / d|w|, with R the sum of the outputs for an image of ones and the absolute weights |w|.

    The network is linearised: every parameter by its absolute value, so that a ReLU passes everything on, and every
    normalisation by the identity. Tanaka et al. (section 4, equation 5) leave BN in evaluation mode, which in a fresh
    network is the identity, too; here its statistics may have been moved by other candidates, so it is left out, as by
    Abdelfattah et al. (ICLR 2021). R grows by a factor with each layer: float64 holds it, and the logarithm ranks alike
    and makes a mean over draws one of factors. Neither images nor labels play a part.
    """

    name: ClassVar[str] = "synflow"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """A forward and a backward pass of one image. Raises ConfigError for a task without classes."""
        check_classifies(self.name, task)
        images: Tensor = batch[0]
        absolute = {name: p.detach().double().abs() for name, p in network.named_parameters()}
        weights = [absolute[name].requires_grad_() for name in connections(network)]
        ones = torch.ones_like(images[:1], dtype=torch.float64)
        with linearised(network), torch.autocast(images.device.type, enabled=False):
            flow = one_tensor(self.name, functional_call(network, absolute, (ones,))).sum()
        total = sum(float((weight.detach() * gradient).sum()) for weight, gradient in gradients(flow, weights))
        return Score(logarithm(total))


@contextmanager
def linearised(network: nn.Module) -> Iterator[None]:
    """Normalisations that pass on a copy (what follows may work in place) of what they are given."""
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    for norm in norms:
        vars(norm)["forward"] = Tensor.clone  # shadows the class's
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]
