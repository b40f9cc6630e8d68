"""The last convolution of a branch, fitted by least squares: the best weights behind all that stands before it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.blocks.inheritance import dense_convolutions

RIDGE = 1e-3
"""Share of the mean diagonal of A'A that is added to each of it: it holds weights where what enters hardly varies."""

NUMBERS = 1 << 24
"""Columns are spread out for as many images at once as make this many numbers."""


class LastConvolution:
    """Fits the convolution that a branch ends with to what the original gives.

        minimise sum |A w - y|^2 + r |w|^2      A (positions, C k k), y (positions, N), r = RIDGE tr(A'A) / (C k k)

    A' A and A' y are sums over images, so they are gathered minibatch by minibatch. A branch that ends with something
    else, or with groups, is left as it is; and so is one whose weights are better already, on these images.

    Args:
        branch: in evaluation mode.
    """

    def __init__(self, branch: nn.Module) -> None:
        self._branch = branch
        self._conv: nn.Conv2d | None = None
        self._square = self._product = self._target = torch.zeros(())

    @torch.no_grad()
    def __call__(self, entered: Tensor, left: Tensor) -> None:
        """Take what enters, (N, C_in, H, W), and leaves, (N, C_out, H', W'), the original's branch."""
        conv, inside = self._last(entered)
        if conv is None:
            return
        self._conv = conv
        size = max(1, NUMBERS // (inside[0].numel() * conv.weight[0, 0].numel()))
        for x, y in zip(torch.split(inside, size), torch.split(left, size), strict=True):
            rows, wanted = columns(conv, x.double()), y.double().transpose(0, 1).flatten(1)
            self._square = self._square + rows @ rows.T
            self._product = self._product + rows @ wanted.T
            self._target = self._target + wanted.square().sum()

    def _last(self, entered: Tensor) -> tuple[nn.Conv2d | None, Tensor]:
        """The convolution that gives what the branch gives, and what enters it."""
        seen: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

        def note(conv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((conv, inputs[0], output))

        handles = [one.register_forward_hook(note) for one in dense_convolutions(self._branch)]
        try:
            left = self._branch(entered)
        finally:
            for handle in handles:
                handle.remove()
        return next(((conv, inside) for conv, inside, output in seen if output is left), (None, entered))

    @torch.no_grad()
    def solve(self) -> None:
        """Set the weights, and the bias if there is one."""
        if self._conv is None or not self._square.isfinite().all():
            return
        weight, bias = self._conv.weight, self._conv.bias
        before = weight.flatten(1) if bias is None else torch.cat([weight.flatten(1), bias[:, None]], 1)
        ridge = (RIDGE * self._square.diagonal().mean()).clamp_min(1e-30)  # where nothing passes, too
        found = torch.linalg.solve(self._square + ridge * torch.eye(len(before[0])).to(self._square), self._product).T
        if self._error(found) < self._error(before.double()):
            weight.copy_(found[:, : weight[0].numel()].view_as(weight))
            if bias is not None:
                bias.copy_(found[:, -1])

    def _error(self, weights: Tensor) -> Tensor:
        """Sum of squares of these weights, (C_out, C k k), on all that was seen."""
        error: Tensor = (
            self._target - 2 * (weights.T * self._product).sum() + ((weights @ self._square) * weights).sum()
        )
        return error


def columns(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What each position's output is a product of: (C k k, positions), and a row of ones more where there is a bias."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    unfolded = F.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride)
    rows = unfolded.transpose(0, 1).flatten(1)
    return rows if conv.bias is None else torch.cat([rows, torch.ones_like(rows[:1])])
