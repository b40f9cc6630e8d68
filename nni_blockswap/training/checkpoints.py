"""Checkpoints: written atomically, read as plain tensors and numbers only, and never trusted blindly."""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from nni_blockswap.errors import CheckpointError
from nni_blockswap.files import write_atomically

LAST, BEST, WEIGHTS = "last.ckpt", "best.ckpt", "weights.pt"


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, renamed into place once they are whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; on a full disk the older file stays."""
        save(checkpoint, path)


def save(content: Any, path: str | Path) -> None:
    """``torch.save``, atomically; a full disk is an OSError."""
    buffer = io.BytesIO()  # torch.save to a stream turns the stream's OSError into a RuntimeError of its own
    torch.save(content, buffer)
    write_atomically(path, lambda stream: stream.write(buffer.getbuffer()))


def read(path: str | Path) -> Any:
    """What a checkpoint holds, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or holds more than tensors and plain values, which could run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint '{path}'.") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL " in str(error):  # torch names the class that it does not allow
            raise CheckpointError(
                f"the checkpoint '{path}' holds more than tensors and plain values, and is not read because it could "
                "run code; save the network's state_dict alone."
            ) from error
        raise CheckpointError(f"the checkpoint '{path}' cannot be read, it may be damaged.") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"the checkpoint '{path}' cannot be read, it may be damaged: {reason}") from error


def to_resume(out: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from: the last epoch's, or where that is damaged the best one's; None on a fresh start.

    Raises:
        CheckpointError: there are checkpoints but none can be read.
    """
    present = [out / name for name in (LAST, BEST) if (out / name).exists()]
    damaged: CheckpointError | None = None
    for path in present:
        try:
            epoch = _epoch_of(path) + 1
        except CheckpointError as error:
            say(str(error))
            damaged = error
        else:
            say(f"going on after epoch {epoch}, from '{path}'.")
            return path
    if damaged is not None:
        raise CheckpointError(f"no checkpoint in '{out}' can be read; delete {LAST} and {BEST} there to start anew.")
    return None


def _epoch_of(path: Path) -> int:
    content = read(path)
    ours = isinstance(content, Mapping) and isinstance(content.get("epoch"), int) and "figures" in content
    if not ours:
        raise CheckpointError(f"the checkpoint '{path}' is not one that a training here has written.")
    return int(content["epoch"])


def weights_of(checkpoint: Any) -> dict[str, Tensor]:
    """The state_dict in a checkpoint: plain, of this project's or another's Lightning module, or of a DDP wrapper.

    A Lightning module may have other parts beside its network, which are left out.

    Raises:
        CheckpointError: it holds none.
    """
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError("a checkpoint holds a state_dict: a mapping from parameter names to tensors.")
    enough = any if "pytorch-lightning_version" in checkpoint else all
    for prefix in ("network.", "model.", "module."):
        if enough(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return dict(state)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU, in torch's own memory layout."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state``, all of it and nothing else, into ``network``.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # about shapes, a line each
        first, *rest = (line.strip().rstrip(".") for line in str(error).splitlines()[1:])
        faults = [first + _more(rest)]
    else:
        kinds = (("missing", missing), ("unexpected", unexpected))
        faults = [f"{kind} {', '.join(keys[:3])}{_more(keys[3:])}" for kind, keys in kinds if keys]
    if faults:
        raise CheckpointError(
            f"the weights in '{source}' do not fit the network: {'; '.join(faults)}; "
            "a teacher is the search space's network with 'S' in every block."
        )


def _more(rest: list[str]) -> str:
    return f" and {len(rest)} more" if rest else ""
