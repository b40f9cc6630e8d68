"""Tensors on disk: safetensors, written atomically, with a digest that tells when a file was damaged."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nni_blockswap.errors import CheckpointError
from nni_blockswap.files import write_atomically


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits of names, shapes, types and bytes, in any order of the names.

    Example:
        >>> digest({"a": torch.zeros(2), "b": torch.tensor(1)}) == digest({"b": torch.tensor(1), "a": torch.zeros(2)})
        True
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def write(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``tensors`` with plain values ``about`` them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said, found = json.dumps(about), digest(plain)
    content = save(plain, {"about": said, "digest": found, "check": _check(said, found)})
    write_atomically(path, lambda stream: stream.write(content))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``write`` wrote, on the CPU; the digest is among what is said about the tensors.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # it is no mapping
        said, found, check = (str(metadata[name]) for name in ("about", "digest", "check"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no file '{path}'.") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read, it may be damaged ({error}); delete it.") from error
    if digest(tensors) != found or _check(said, found) != check:
        raise CheckpointError(f"'{path}' is damaged: its content is not that of its digest; delete it.")
    return tensors, {**json.loads(said), "digest": found}


def _check(about: str, found: str) -> str:
    """Sixteen hexadecimal digits of what is said about the tensors, and of their digest."""
    return hashlib.sha256(f"{found} {about}".encode()).hexdigest()[:16]
