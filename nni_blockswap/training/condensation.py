"""Learned group convolutions: a 1x1 convolution that learns which inputs each of its groups may drop (CondenseNet).

A convolution from R to O channels has G groups; output o is of group o mod G, so that a grouped convolution that
follows mixes all of them. While it trains, a group-lasso term pulls whole columns of a group to zero,

    penalty = sum_g sum_j sqrt( sum_{o in g} w_oj^2 )

and G - 1 times, at even distances over the first half of the training, each group drops R/G of its inputs for good:
those of its inputs j with the least sum_{o in g} |w_oj|. So each ends with R/G inputs, and the whole is an index
selection, a standard grouped convolution and a permutation of its outputs: ``deployed``, with the same outputs.

The paper has both a number of groups and a condensation factor; its networks, like these, take the same for both.

Source: Huang et al., *CondenseNet: An Efficient DenseNet using Learned Group Convolutions*, CVPR 2018, section 3.
"""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call

from nni_blockswap.errors import SpaceError, TrainingError

GROUP_LASSO = 1e-5
"""Weight of the penalty."""


class LearnedGroupConv(nn.Module):
    """BN, ReLU and a 1x1 convolution whose groups learn their inputs: (N, R, H, W) -> (N, O, H, W).

    Raises:
        SpaceError: ``groups`` does not divide the widths.
    """

    mask: Tensor
    """Which weights are alive: (O, R) of bool, which an average of weights takes as they are."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise SpaceError(
                f"{groups} learned groups do not fit a convolution from {in_channels} to {out_channels} channels; "
                "the number of groups must divide both."
            )
        self.groups = groups
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.register_buffer("mask", torch.ones(out_channels, in_channels, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        weight = self._masked()[:, :, None, None]
        out: Tensor = functional_call(self.conv, {"weight": weight}, (self.relu(self.bn(x)),))
        return out

    def penalty(self) -> Tensor:
        """The group-lasso term; a column that was dropped has no gradient."""
        squares = self._by_group(self._masked() ** 2)
        return squares.clamp_min(1e-12).sqrt().sum()

    @property
    def condensations(self) -> int:
        """How many there were."""
        alive = int(self.mask[0].sum())
        return self.groups - self.groups * alive // self.conv.in_channels

    @torch.no_grad()
    def condense(self) -> None:
        """Drop each group's R/G inputs that matter least."""
        alive = self._by_group(self.mask) > 0  # (G, R)
        importance = self._by_group(self._masked().abs()).masked_fill(~alive, torch.inf)
        dropped = importance.topk(self.conv.in_channels // self.groups, largest=False).indices
        alive.scatter_(1, dropped, False)
        self.mask.copy_(alive.repeat(self.conv.out_channels // self.groups, 1))

    @torch.no_grad()
    def deployed(self) -> "SelectedGroupConv":
        """The same function as a standard grouped convolution.

        Raises:
            TrainingError: it was not condensed to the end.
        """
        if self.condensations < self.groups - 1:
            raise TrainingError(
                f"learned groups condense {self.groups - 1} times over the first half of the training, and this one "
                f"ended after {self.condensations}; train for more steps."
            )
        found = SelectedGroupConv(self.conv.in_channels, self.conv.out_channels, self.groups).to(self.conv.weight)
        columns = [row.nonzero()[:, 0] for row in self.mask[: self.groups]]  # each R/G
        found.index.copy_(torch.cat(columns))
        for kept, original in zip(_values(found.bn), _values(self.bn), strict=True):
            kept.copy_(original[found.index])
        weights = [self.conv.weight[group :: self.groups][:, kept] for group, kept in enumerate(columns)]
        found.conv.weight.copy_(torch.cat(weights))
        return found.train(self.training)

    def _masked(self) -> Tensor:
        return self.conv.weight[:, :, 0, 0] * self.mask

    def _by_group(self, weights: Tensor) -> Tensor:
        """Sums over the outputs of each group: (O, R) -> (G, R)."""
        return weights.reshape(-1, self.groups, weights.shape[1]).sum(0)


class SelectedGroupConv(nn.Module):
    """What a learned group convolution becomes: index selection, BN, ReLU, grouped 1x1 convolution, permutation."""

    index: Tensor
    """The input of each channel: (R,), group after group."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
        self.shuffle = nn.ChannelShuffle(groups)
        self.register_buffer("index", torch.arange(in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, R, H, W) -> (N, O, H, W)."""
        out: Tensor = self.shuffle(self.conv(self.relu(self.bn(x[:, self.index]))))
        return out


def _values(bn: nn.BatchNorm2d) -> tuple[Tensor, ...]:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return bn.weight, bn.bias, bn.running_mean, bn.running_var


def learned(network: nn.Module) -> list[LearnedGroupConv]:
    """The learned group convolutions of ``network``."""
    return [module for module in network.modules() if isinstance(module, LearnedGroupConv)]


def deploy(network: nn.Module) -> None:
    """Put standard grouped convolutions in the place of the learned ones."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LearnedGroupConv):
            network.set_submodule(name, module.deployed())


def due(progress: float, groups: int) -> int:
    """How many condensations have taken place by ``progress``, the share of the training that is done.

    Example:
        >>> [due(step / 12, groups=4) for step in range(0, 13, 2)]
        [0, 1, 2, 3, 3, 3, 3]
    """
    return min(int(2 * progress * (groups - 1) + 1e-9), groups - 1)


def _trained(training: Any) -> nn.Module:
    """The network alone: an average of its weights takes over which of them are alive."""
    network: nn.Module = training.network
    return network


class Condensation(Callback):
    """Condenses the learned group convolutions of what is trained, and adds the gradient of their penalty.

    Args:
        group_lasso: weight of the penalty, which ends with the last condensation.
    """

    def __init__(self, group_lasso: float = GROUP_LASSO) -> None:
        self._group_lasso = group_lasso

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Condense where it is time; what a resumed network has behind it, it knows itself."""
        progress = trainer.global_step / trainer.estimated_stepping_batches
        for convolution in learned(_trained(pl_module)):
            while convolution.condensations < due(progress, convolution.groups):
                convolution.condense()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the penalty's gradient, the same in all processes."""
        for convolution in learned(_trained(pl_module)):
            weight = convolution.conv.weight
            if convolution.condensations < convolution.groups - 1 and weight.grad is not None:
                weight.grad += self._group_lasso * torch.autograd.grad(convolution.penalty(), weight)[0]
