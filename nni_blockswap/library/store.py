"""Tensors on disk: safetensors, written atomically, with a digest that tells when a file was damaged."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nni_blockswap.blocks.digest import bytes_of
from nni_blockswap.errors import CheckpointError
from nni_blockswap.files import write_atomically


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits of names, shapes, types and bytes, in any order of the names.

    Example:
        >>> import torch
        >>> digest({"a": torch.zeros(2), "b": torch.tensor(1)}) == digest({"b": torch.tensor(1), "a": torch.zeros(2)})
        True
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        found.update(bytes_of(tensors[name]))
    return found.hexdigest()[:16]


def write(path: str | Path, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    """Write ``tensors`` and plain values ``told`` about them; tensors that share their memory each for itself."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        one = tensor.detach().cpu().contiguous()
        memory = one.untyped_storage().data_ptr()
        plain[name] = one.clone() if memory in seen else one  # safetensors refuses to write memory twice
        seen.add(memory)
    said, found = json.dumps(told), digest(plain)
    content = save(plain, {"about": said, "digest": found, "check": _check(said, found)})
    write_atomically(path, lambda stream: stream.write(content))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``write`` wrote, on the CPU; the digest is among what is said about the tensors.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    with _opened(path) as content:
        said = _said(content, path)
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # it is no mapping
    if digest(tensors) != said["digest"]:
        raise _damaged(path)
    return tensors, said


def about(path: str | Path) -> dict[str, Any]:
    """What ``write`` was told about the tensors, and their digest, without a look at the tensors themselves.

    Raises:
        CheckpointError: it is missing, or what it says is damaged.
    """
    with _opened(path) as content:
        return _said(content, path)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as content:
            yield content
    except FileNotFoundError:
        raise CheckpointError(f"there is no file '{path}'.") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read, it may be damaged ({error}); delete it.") from error


def _said(content: Any, path: str | Path) -> dict[str, Any]:
    metadata = content.metadata() or {}
    said, found, check = (str(metadata[name]) for name in ("about", "digest", "check"))
    if _check(said, found) != check:
        raise _damaged(path)
    return {**json.loads(said), "digest": found}


def _damaged(path: str | Path) -> CheckpointError:
    return CheckpointError(f"'{path}' is damaged: its content is not that of its digest; delete it.")


def _check(said: str, found: str) -> str:
    """Sixteen hexadecimal digits of what is said about the tensors, and of their digest."""
    return hashlib.sha256(f"{found} {said}".encode()).hexdigest()[:16]
