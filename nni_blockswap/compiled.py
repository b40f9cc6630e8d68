"""Batch normalisation and ReLU compiled for this machine's processor, where there is a C compiler: ``batch_norm.c``."""

import ctypes
import functools
import math
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
DEFINITIONS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The functions of ``batch_norm.c`` for ``dtype``, compiled in a moment; None where that cannot be done."""
    if dtype not in DEFINITIONS:
        return None
    compiler = shlex.split(os.environ.get("CC", "cc"))
    source = Path(__file__).with_name("batch_norm.c")
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            target = Path(folder) / "batch_norm.so"
            command = [*compiler, *FLAGS, *DEFINITIONS[dtype], str(source), "-o", str(target), "-lm"]
            subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
            return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError):
        return None


class BatchNorm(torch.autograd.Function):
    """BN in training mode with frozen scale and shift, then ReLU if asked for. Keeps x alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        mean, inverse_std = torch.empty_like(weight), torch.empty_like(weight)
        ctx.least = 0.0 if relu else -math.inf
        _call("forward", x, [ctx.least, eps], [x, weight, bias, mean, inverse_std, y])
        ctx.save_for_backward(x, weight, bias, mean, inverse_std)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *of_channels = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        before = torch.empty_like(x)
        _call("backward", x, [ctx.least], [gradient, x, *of_channels, before])
        return before, None, None, None, None


def _call(name: str, x: Tensor, numbers: list[float], tensors: list[Tensor]) -> None:
    images, channels, height, width = x.shape
    sizes = map(ctypes.c_long, (images * height, width * channels, channels))
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
    getattr(library(x.dtype), name)(*sizes, *map(ctypes.c_float, numbers), *pointers)
