"""Zen-score: how expressive a network is for Gaussian inputs (Lin et al., ICCV 2021)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.networks import tensors_in
from nni_blockswap.scoring.proxies.base import Score, check_classifies, connections
from nni_blockswap.tasks import Batch, Task

ALPHA = 0.01
"""Size of the perturbation; the authors'."""

SEED = 0
"""Of the Gaussian images: all candidates see the same."""


class ZenScore:
    """log mean_n ||f(x) - f(x + alpha e)||_1 + sum_l log sqrt(mean_c var_lc), with x and e standard normal images.

    f is the last feature map before the global pooling; var_lc is the variance of channel c that batch normalisation l
    divides by, which the second term gives back (Algorithm 1). The authors draw all weights from N(0, 1); here those of
    the super-network are taken, each layer scaled to unit standard deviation where its weights differ. Images and
    labels play no part.
    """

    name: ClassVar[str] = "zen"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    @torch.no_grad()
    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """Two forward passes. Raises ConfigError for a task without classes."""
        check_classifies(self.name, task)
        images: Tensor = batch[0]
        generator = torch.Generator().manual_seed(SEED)
        x, e = torch.randn((2, *images.shape), generator=generator, dtype=torch.float64).to(images)
        weights = {name: weight / weight.std() for name, weight in connections(network).items() if weight.std() > 0}
        with torch.autocast(images.device.type, enabled=False):
            with traced(network) as plain:
                functional_call(network, weights, (x,))
            with traced(network) as perturbed:
                functional_call(network, weights, (x + ALPHA * e,))
        difference = (plain.features - perturbed.features).abs().flatten(1).sum(1).mean()
        return Score(float(difference.log() + sum(0.5 * variance.log() for variance in plain.variances)))


@dataclass
class Trace:
    """What one pass left behind: the last map of more than one position, and each normalisation's mean variance."""

    features: Tensor = field(default_factory=lambda: torch.empty(0))
    variances: list[Tensor] = field(default_factory=list)


@contextmanager
def traced(network: nn.Module) -> Iterator[Trace]:
    """Watch the modules that run; those of a user's own network that were replaced run on no image."""
    trace = Trace()

    def keep_map(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and len(output) and output[0, 0].numel() > 1:
            trace.features = output.clone()  # what follows may work in place

    def keep_variance(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = next(tensors_in((inputs, named)))
        if len(x):
            trace.variances.append(x.var((0, 2, 3), correction=0).mean())

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [module.register_forward_hook(keep_map) for module in leaves]
    norms = [module for module in leaves if isinstance(module, nn.BatchNorm2d)]
    handles += [norm.register_forward_pre_hook(keep_variance, with_kwargs=True) for norm in norms]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
