"""Where scores are computed, and in what arithmetic."""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from nni_blockswap.errors import ConfigError, first_line

PRECISIONS = ("auto", "float32", "bf16", "float64")


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is a GPU if there is one. Raises ConfigError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("nothing is computed there")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = first_line(error)
        raise ConfigError(f"the device '{name}' cannot be used ({message}); choose auto, cpu or cuda.") from error
    return device


def resolve_precision(name: str, device: torch.device, bf16_known: bool = False) -> str:
    """The precision called ``name``; "auto" is bf16 where it is native to a CPU and ``bf16_known`` to do, else float32.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"there is no precision '{name}'; choose from {', '.join(PRECISIONS)}.")
    if name != "auto":
        return name
    return "bf16" if bf16_known and device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Convolutions in bfloat16 if ``precision`` says so, else in just that precision."""
    if precision == "bf16":
        # No cache: it would hand a CUDA graph casts of weights that are gone when it is replayed.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return _without_tf32() if device.type == "cuda" else nullcontext()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolutions that multiply in float32: by default PyTorch lets cuDNN round to TF32's 10 bits of mantissa."""
    cudnn: Any = torch.backends.cudnn
    modern = hasattr(cudnn, "conv")  # since PyTorch 2.9
    owner, name = (cudnn.conv, "fp32_precision") if modern else (cudnn, "allow_tf32")
    before = getattr(owner, name)
    setattr(owner, name, "ieee" if modern else False)
    try:
        yield
    finally:
        setattr(owner, name, before)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next candidate, instead of fetching zeroed pages for every tensor.

    For as long as the process lives. Where the library is not glibc, or will not, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    if mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20):  # some releases take no more
        mallopt(trim_threshold, (1 << 31) - 1)
