"""Checkpoints: written atomically, read as plain tensors and numbers only, and never trusted blindly."""

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from safetensors.torch import load_file
from torch import Tensor, nn

from nni_blockswap.errors import CheckpointError, StateError, first_line
from nni_blockswap.files import check_archive, write_atomically

LAST, BEST = "last.ckpt", "best.ckpt"
SAFETENSORS = ".safetensors"


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, renamed into place once they are whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; on a full disk the older file stays."""
        save(checkpoint, path)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """What ``path`` holds. Lightning forgets which epoch was the best where that has another folder's paths."""
        checkpoint = super().load_checkpoint(path, *arguments, **options)
        for state in checkpoint.get("callbacks", {}).values():
            if "dirpath" in state:
                state.update(_paths_in(Path(path).resolve().parent, state))
        return checkpoint


def _paths_in(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """The paths of a ``ModelCheckpoint`` that has moved to ``folder`` with its files."""

    def here(path: str) -> str:
        return str(folder / Path(path).name) if path else path

    single = ("best_model_path", "kth_best_model_path", "last_model_path")
    return {
        "dirpath": str(folder),
        **{name: here(state[name]) for name in single},
        "best_k_models": {here(path): score for path, score in state["best_k_models"].items()},
    }


def save(content: Any, path: str | Path) -> None:
    """``torch.save``, atomically; a full disk is an OSError."""
    buffer = io.BytesIO()  # torch.save to a stream turns the stream's OSError into a RuntimeError of its own
    torch.save(content, buffer)
    write_atomically(path, lambda stream: stream.write(buffer.getbuffer()))


def stored_bytes(network: nn.Module) -> int:
    """Size of the file of its weights."""
    buffer = io.BytesIO()
    torch.save(plain_state(network), buffer)
    return buffer.tell()


def read(path: str | Path) -> Any:
    """What a checkpoint holds, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or holds more than tensors and plain values, which could run code.
    """
    try:
        if Path(path).suffix == SAFETENSORS:
            return load_file(path)
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint '{path}'.") from None
    except Exception as error:  # torch raises of all kinds
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL " in str(error):  # it names the class that it refuses
            raise CheckpointError(
                f"the checkpoint '{path}' holds more than tensors and plain values, and is not read because it could "
                "run code; save the network's state_dict alone."
            ) from error
        if "TorchScript" in str(error):
            raise CheckpointError(f"'{path}' is a TorchScript archive; save the network's state_dict.") from error
        told = "" if isinstance(error, pickle.UnpicklingError) else f": {first_line(error)}"
        raise CheckpointError(f"the checkpoint '{path}' cannot be read, it may be damaged{told}.") from error


@dataclass(frozen=True)
class Earlier:
    """A checkpoint to go on from.

    Attributes:
        path: its file.
        epoch: how many it has behind it.
        stopped: whether training had stopped early there.
        planned: how many epochs it was to have; None where it does not say.
    """

    path: Path
    epoch: int
    stopped: bool
    planned: int | None

    def stopped_for_good(self, epochs: int) -> bool:
        """Whether it stopped early, and nobody has asked for more epochs since."""
        return self.stopped and self.planned == epochs


def to_resume(out: Path, say: Callable[[str], None], run: str | None = None) -> Earlier | None:
    """The checkpoint to go on from: the last epoch's, or where that is damaged the best one's; None on a fresh start.

    Args:
        run: name of the run that goes on; None takes any.

    Raises:
        CheckpointError: there are checkpoints but none can be read.
        StateError: one is another run's.
    """
    present = [out / name for name in (LAST, BEST) if (out / name).exists()]
    damaged: CheckpointError | None = None
    for path in present:
        try:
            found = _earlier(path, run)
        except CheckpointError as error:
            say(str(error))
            damaged = error
        else:
            say(f"going on after epoch {found.epoch}, from '{path}'.")
            return found
    if damaged is not None:
        raise CheckpointError(f"no checkpoint in '{out}' can be read; delete {LAST} and {BEST} there to start anew.")
    return None


def _earlier(path: Path, run: str | None) -> Earlier:
    content = read(path)
    if not (isinstance(content, Mapping) and _is_count(content.get("epoch")) and _are_figures(content.get("figures"))):
        raise CheckpointError(f"the checkpoint '{path}' is not one that a training here has written.")
    if run is not None and content.get("run", run) != run:
        raise StateError(f"'{path}' is another run's; give this one a folder of its own, or delete that file.")
    planned = content.get("planned_epochs")
    return Earlier(path, content["epoch"] + 1, content.get("stopped") is True, planned if _is_count(planned) else None)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _are_figures(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) and type(value[name]) is float for name in value)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU, in torch's own memory layout."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
