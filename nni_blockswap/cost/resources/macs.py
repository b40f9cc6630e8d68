"""Multiply-accumulates of convolutions and linear layers, for one image.

BN, activations, pooling and additions are free, as in the paper's tables, and so is attention. What a network folds
into the batch, frames or patches of its one image, counts as often.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nni_blockswap.networks import tensors_in


class Macs:
    """One for each product of a weight with a value that enters or, in a transposed convolution, leaves."""

    name = "macs"
    unit = "MACs"
    suffixes: Mapping[str, int] = {}

    def read(self, modules: Sequence[nn.Module], run: Callable[[], object]) -> int:
        """Counted by hooks while the modules run."""
        total = 0

        def count(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            nonlocal total
            total += _products(module, next(tensors_in((inputs, named))), next(tensors_in(output)))

        layers = [module for module in modules if isinstance(module, _ConvNd | nn.Linear)]
        handles = [layer.register_forward_hook(count, with_kwargs=True) for layer in layers]
        try:
            if handles:
                with torch.no_grad():
                    run()
        finally:
            for handle in handles:
                handle.remove()
        return total


def _products(module: nn.Module, x: Tensor, output: Tensor) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.Linear):
        return weight.numel() * (output.numel() // output.shape[-1])
    positions = x if isinstance(module, _ConvTransposeNd) else output
    channels = positions.shape[-1 - (weight.dim() - 2)]  # before the spatial dimensions, with a batch before it or not
    return weight.numel() * (positions.numel() // channels)


MACS = Macs()
