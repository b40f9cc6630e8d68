"""A super-network's layers in the forms that run fastest on a CPU; what they compute stays the same, up to rounding.

Measured against the alternatives in benchmarks/results/search_speed.md.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.blocks.network import NetworkSpace
from nni_blockswap.blocks.shells import PreActivationBlock
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.networks import copied
from nni_blockswap.scoring.engines import compiled
from nni_blockswap.scoring.engines.base import Measure, Work
from nni_blockswap.scoring.engines.chain import CHAIN, FisherChain, measuring
from nni_blockswap.scoring.machine import autocast, keep_freed_memory
from nni_blockswap.scoring.proxies.fisher import OfFisherInformation, fisher_information
from nni_blockswap.tasks import Task
from nni_blockswap.tasks.classification import Classification, Labelled


class CpuLayers:
    """A chain of a classifier in these layers, in float32 or bfloat16.

    A detector's proposals are chosen one by one, and rounding in another way chooses others.
    """

    name = "cpu-layers"
    about = "block by block, what two candidates share once, in layers made for this processor"
    parallel = True

    def suits(self, work: Work) -> bool:
        classifies = isinstance(work.task, Classification)
        fits = classifies and work.device.type == "cpu" and work.precision != "float64" and CHAIN.suits(work)
        return fits and (
            not isinstance(work.network, NetworkSpace) or _answers_alike(work.network, work.measured[0][0])
        )

    def start(self, work: Work) -> Callable[[], Measure]:
        is_compiled = can_compile(work.precision, work.device)  # all processes are told, so that they round alike
        proxy = cast(OfFisherInformation, work.proxy)
        return partial(start, work.draw, proxy, work.measured, work.precision, work.recompute, is_compiled)


TOLERANCE = 0.05
"""Of the largest output: rounding is far below."""


def _answers_alike(network: NetworkSpace, images: Tensor) -> bool:
    """Whether a network of one's own answers as before in these layers: its code may run them in parts, or ask of them.

    Eight images tell.
    """
    try:
        other = cast(NetworkSpace, copied(network))
        prepare(other, bf16=False)
        with torch.no_grad():
            expected, found = network(images[:8]), other(images[:8])
            return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
    except Exception:  # somebody else's code
        return False


CPU_LAYERS = CpuLayers()
CPU = torch.device("cpu")


def start(
    draw: Callable[[], BlockSpace],
    proxy: OfFisherInformation,
    batches: Sequence[Labelled],
    precision: str,
    recompute: bool,
    is_compiled: bool,
) -> Measure:
    """A function from choices to what ``proxy`` says, the mean over ``batches``."""
    network = draw()
    prepare(network, precision == "bf16", is_compiled)
    keep_freed_memory()
    information = compiled.fisher_information if is_compiled else fisher_information
    with autocast(CPU, precision):
        chain = FisherChain(network, cast(Task, Classification()), batches, recompute, information)
    return measuring(chain, proxy, len(batches), CPU, precision)


def can_compile(precision: str, device: torch.device) -> bool:
    """Whether there is a compiled form of BN and Fisher information for this."""
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}.get(precision)
    return device.type == "cpu" and dtype is not None and compiled.library(dtype) is not None


WIDTH = 8
"""Channels a group that grouped convolutions in channels_last need to be fast."""


def prepare(network: BlockSpace, bf16: bool, is_compiled: bool = False) -> None:
    """Bring the layers of ``network`` into their fast forms: channels_last, wide groups, BN and ReLU in one.

    Args:
        network: the super-network.
        bf16: whether its convolutions run in bfloat16.
        is_compiled: whether BN is the ``compiled`` one, which rounds in another way.
    """
    network.to(memory_format=torch.channels_last)
    for module in list(network.modules()):
        if type(module) is nn.Conv2d and "weight" in module._parameters:  # else it may compute something of its weight
            _prepare_convolution(module, bf16)
        elif isinstance(module, PreActivationBlock):
            _fuse(module, "bn", "relu", is_compiled)
        elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            for (name, child), (after, follower) in itertools.pairwise(list(module._modules.items())):
                if _is_batch_norm(child) and type(follower) is nn.ReLU:
                    _fuse(module, name, after, is_compiled)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if _is_batch_norm(child):
                setattr(module, name, BatchNorm(child, False, is_compiled))


def _is_batch_norm(module: nn.Module | None) -> bool:
    """Of a batch's own statistics; one of a kind of its own may do more."""
    return type(module) is nn.BatchNorm2d and module.training


def _prepare_convolution(conv: nn.Conv2d, bf16: bool) -> None:
    per_group = conv.in_channels // conv.groups
    slow_backward = bf16 and conv.stride != (1, 1)  # of depthwise convolutions
    if per_group in (2, 4) or (per_group == 1 and conv.groups > 1 and slow_backward):
        widen_groups(conv, WIDTH)
    if bf16:
        conv.to(torch.bfloat16)


def widen_groups(conv: nn.Conv2d, width: int) -> None:
    """Merge groups until each has ``width`` channels: block-diagonal weights, so that sums only gain terms of 0.

    Left alone where widths do not divide, or where a group is as wide already.
    """
    per_group = conv.in_channels // conv.groups
    if conv.in_channels != conv.out_channels or conv.in_channels % width or width % per_group or per_group >= width:
        return
    wide = conv.weight.new_zeros(conv.groups * per_group // width, width, width, *conv.kernel_size)
    narrow = conv.weight.detach().view(len(wide), width, per_group, *conv.kernel_size)
    for first in range(0, width, per_group):
        group = slice(first, first + per_group)
        wide[:, group, group] = narrow[:, group]
    conv.groups = len(wide)
    conv.weight = nn.Parameter(wide.flatten(0, 1).contiguous(memory_format=torch.channels_last), requires_grad=False)


def _fuse(parent: nn.Module, norm: str, relu: str, is_compiled: bool) -> None:
    setattr(parent, norm, BatchNorm(getattr(parent, norm), True, is_compiled))
    setattr(parent, relu, nn.Identity())


class BatchNorm(nn.Module):
    """BN in training mode with frozen scale and shift, then ReLU if asked for: compiled, or by PyTorch."""

    def __init__(self, norm: nn.BatchNorm2d, relu: bool, is_compiled: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.relu = norm.weight, norm.bias, norm.eps, relu
        self._is_compiled = is_compiled and norm.affine

    def forward(self, x: Tensor) -> Tensor:
        function = compiled.BatchNorm if self._is_compiled and x.dtype in compiled.DEFINITIONS else _BatchNorm
        out: Tensor = function.apply(x, self.weight, self.bias, self.eps, self.relu)  # type: ignore[no-untyped-call]
        return out


class _BatchNorm(torch.autograd.Function):
    """BN where there is no ``compiled`` one: PyTorch's own kernels, but for the statistics.

    In channels_last its kernel adds all N H W terms of a channel one after the other in float32, and rounding makes
    scores wrong by a hundredth: ten times as much as in NCHW. ``statistics`` adds a column of the image at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
        mean, variance = statistics(x)
        out = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, relu_(out) if relu else x, weight, mean, (variance + eps).rsqrt())
        ctx.eps, ctx.relu = eps, relu
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, mean, inverse_std = ctx.saved_tensors
        if ctx.relu:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        before, _, _ = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse_std, True, ctx.eps, [True, False, False]
        )
        return before, None, None, None, None


def relu_(x: Tensor) -> Tensor:
    """ReLU in place. A negative bfloat16 is a negative integer, too, and PyTorch clamps those seven times as fast.

    A NaN may become 0; after BN it shows all the same, in the gradient: the mean of its channel is NaN.
    """
    if x.dtype != torch.bfloat16:
        return x.relu_()
    x.view(torch.int16).clamp_min_(0)
    return x


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel of x (N, C, H, W), in float32 at least, from the image's columns'."""
    n, channels, height, width = x.shape
    columns = x.permute(0, 2, 3, 1).reshape(n, height, 1, width * channels).permute(0, 3, 1, 2)  # (N, W C, H, 1)
    precision = torch.promote_types(x.dtype, torch.float32)
    unused = torch.zeros(width * channels, dtype=precision)  # running statistics: what comes back has their type
    mean, variance = torch.ops.aten.batch_norm_update_stats(columns, unused, unused, 0.0)
    mean, variance = (each.double().view(width, channels) for each in (mean, variance))
    return mean.mean(0).to(precision), (variance.mean(0) + mean.var(0, correction=0)).to(precision)
