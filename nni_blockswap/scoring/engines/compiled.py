"""What takes most passes through memory, compiled for this machine's processor where there is a C compiler."""

import ctypes
import functools
import math
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nni_blockswap.scoring.proxies import fisher

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
PATIENCE = 60.0
"""Seconds for a compiler, which needs about one."""
DEFINITIONS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The functions of ``compiled.c`` for ``dtype``, compiled in a moment; None where that cannot be done."""
    if dtype not in DEFINITIONS:
        return None
    source = Path(__file__).with_name("compiled.c")
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            target = Path(folder) / "compiled.so"
            command = [*compiler, *FLAGS, *DEFINITIONS[dtype], str(source), "-o", str(target), "-lm"]
            nowhere = subprocess.DEVNULL
            subprocess.run(command, check=True, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=PATIENCE)
            return ctypes.CDLL(str(target))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


class BatchNorm(torch.autograd.Function):
    """BN in training mode with frozen scale and shift, then ReLU if asked for; x (N, C, H, W) in a type with a library.

    Of all that is large it keeps x alone for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        mean, inverse_std = torch.empty_like(weight), torch.empty_like(weight)
        ctx.least = 0.0 if relu else -math.inf
        _call("forward", _sizes(x), [ctx.least, eps], [x, weight, bias, mean, inverse_std, y])
        ctx.save_for_backward(x, weight, bias, mean, inverse_std)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *of_channels = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        before = torch.empty_like(x)
        _call("backward", _sizes(x), [ctx.least], [gradient, x, *of_channels, before])
        return before, None, None, None, None


def fisher_information(activations: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Equations (2) and (3), as ``proxies.fisher.fisher_information``, which blocks of other types are left to."""
    if any(activation.dtype not in DEFINITIONS for activation in activations):
        return fisher.fisher_information(activations, gradients)
    return torch.stack([_information(*block) for block in zip(activations, gradients, strict=True)])


def _information(activation: Tensor, gradient: Tensor) -> Tensor:
    a, g = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (activation, gradient))
    images, channels, height, width = a.shape
    sums = torch.empty(images, width, channels)
    _call("products", [images, height, width * channels], [], [a, g, sums])
    return sums.sum(1).square_().sum() / (2 * images)


def _sizes(x: Tensor) -> list[int]:
    images, channels, height, width = x.shape
    return [images * height, width * channels, channels]


def _call(name: str, sizes: Sequence[int], numbers: Sequence[float], tensors: Sequence[Tensor]) -> None:
    """Call a function with tensors in channels_last, the first of which has the type that it is compiled for."""
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
    function = getattr(library(tensors[0].dtype), name)
    function(*map(ctypes.c_long, sizes), *map(ctypes.c_float, numbers), *pointers)
