"""How far candidates are from what they stand in for, with the error of that figure."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Error:
    """A normalised error: 0 is the original, 1 what the best constant a channel would give.

    Attributes:
        value: the mean over the images.
        deviation: its standard error.
    """

    value: float
    deviation: float


NONE = Error(0.0, 0.0)
"""Of the original."""


def spread(target: Tensor) -> Tensor:
    """Variance of ``target`` (N, C, H, W) about the mean of each channel: a scalar."""
    return (target - target.mean((0, 2, 3), keepdim=True)).square().mean()


class Gauge:
    """Measures the candidates of one block on minibatches as they come.

        error = mean_i |f(x_i) - y_i|^2 / D / V    with D numbers an image and V the variance about the channels' means

    Its standard error is the deviation over the images, divided by the root of their number and by V.

    Args:
        candidates: what is measured, by name.
    """

    def __init__(self, candidates: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        self._candidates = candidates
        self._squares: dict[str, list[Tensor]] = {name: [] for name in candidates}
        self._means: list[Tensor] = []
        self._mean_squares: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, entered: Tensor, left: Tensor) -> None:
        """Measure on what enters and leaves the branch, (N, C, H, W)."""
        target = left.double()
        self._means.append(target.mean((2, 3)))
        self._mean_squares.append(target.square().mean((2, 3)))
        for name, candidate in self._candidates.items():
            self._squares[name].append((candidate(entered).double() - target).square().mean((1, 2, 3)))

    def errors(self) -> dict[str, Error]:
        """Of each candidate."""
        variance = float((torch.cat(self._mean_squares).mean(0) - torch.cat(self._means).mean(0).square()).mean())
        found = {}
        for name, parts in self._squares.items():
            squares = torch.cat(parts) / max(variance, 1e-30)
            deviation = float(squares.std()) / math.sqrt(len(squares)) if len(squares) > 1 else math.nan
            found[name] = Error(float(squares.mean()), deviation)
        return found
