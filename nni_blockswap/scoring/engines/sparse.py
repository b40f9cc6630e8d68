"""Convolutions whose backward pass passes over positions without a gradient.

A detector's losses are taken of some hundred anchors, chosen from a quarter of a million: at all other positions of the
region proposal network the gradient is 0, and so is all that a convolution makes of it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from nni_blockswap.blocks.shells import Block
from nni_blockswap.blocks.space import BlockSpace

FEW = 1 / 20
"""Share of the positions with a gradient up to which they are faster one by one; measured on a CPU."""


def prepare_head(network: BlockSpace) -> None:
    """Let the convolutions outside the blocks pass over positions without a gradient; their weights are frozen."""
    for parent in _outside(network):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and _is_plain(child):
                setattr(parent, name, Conv2d(child))


class Conv2d(nn.Module):
    """A convolution of stride 1 with frozen weights; what it computes is the same, up to the order of sums."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.padding = conv.weight, conv.bias, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Conv2d.apply(x, self.weight, self.bias, self.padding)  # type: ignore[no-untyped-call]
        return out


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.padding = x.shape, x.dtype, padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.saved_tensors[0].to(gradient.dtype)
        there = (gradient != 0).any(1)  # (N, H', W')
        if there.sum() <= FEW * there.numel():
            before = scattered(gradient, there, weight, ctx.padding, ctx.shape)
        else:
            before = conv2d_input(ctx.shape, weight, gradient, padding=ctx.padding)  # type: ignore[no-untyped-call]
        return before.to(ctx.dtype), None, None, None


def scattered(
    gradient: Tensor, there: Tensor, weight: Tensor, padding: tuple[int, int], shape: tuple[int, int, int, int]
) -> Tensor:
    """Gradient at the input of a convolution of stride 1, each position's part added where the kernel took from.

    Args:
        gradient: at the output, (N, C', H', W').
        there: where it is not 0, (N, H', W').
        weight: (C', C, k, l).
        padding: of the input.
        shape: of the input, (N, C, H, W).
    """
    (images, channels, height, width), (above, left) = shape, padding
    rows, columns = height + 2 * above, width + 2 * left
    image, row, column = there.nonzero(as_tuple=True)
    values = gradient[image, :, row, column]  # (positions, C')
    padded = gradient.new_zeros(images * rows * columns, channels)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            padded.index_add_(0, (image * rows + row + i) * columns + column + j, values @ weight[:, :, i, j])
    inner = padded.view(images, rows, columns, channels)[:, above : above + height, left : left + width]
    return inner.permute(0, 3, 1, 2)


def _outside(module: nn.Module) -> list[nn.Module]:
    """``module`` and the modules below it that are in no block."""
    below = [one for child in module.children() if not isinstance(child, Block) for one in _outside(child)]
    return [module, *below]


def _is_plain(conv: nn.Conv2d) -> bool:
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and not isinstance(conv.padding, str)
