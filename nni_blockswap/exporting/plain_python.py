"""``.safetensors``: the weights, and a Python file beside them that builds the network with torch alone."""

import importlib.util
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nni_blockswap import __version__
from nni_blockswap.errors import ConfigError, ExportError, first_line
from nni_blockswap.exporting.snapshot import Snapshot
from nni_blockswap.exporting.source import Source
from nni_blockswap.exporting.tracing import Outline
from nni_blockswap.files import write_atomically, write_text

TITLE = "A network that nni_blockswap"


def write(snapshot: Snapshot, path: Path) -> tuple[Path, ...]:
    """Write the weights to ``path`` and the code beside it, after both have been loaded and run.

    Weights keep the network's own names. What the forward pass does not use in eval mode is left out.

    Raises:
        ConfigError: the file's name is none that Python could import, or the code beside it is somebody's own.
        ExportError: the network cannot be traced, or has a part that torch alone cannot build.
    """
    if not path.stem.isidentifier():
        raise ConfigError(
            f"the Python file beside '{path.name}' is imported by its name, and '{path.stem}' is no name in Python; "
            "use letters, digits and underscores."
        )
    code = path.with_suffix(".py")
    if code.exists() and not is_ours(code):
        raise ConfigError(
            f"'{code}' would be overwritten, and no export has written it; export to another name than '{path.name}'."
        )
    source = _source(snapshot, path.stem)
    with TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        write_text(draft.with_suffix(".py"), source)
        try:
            module = _imported(draft.with_suffix(".py"))
            weights = _weights(snapshot.network, module.build)
            draft.write_bytes(weights)
            with torch.no_grad():
                outputs = module.load()(snapshot.images.clone())
        except Exception as error:
            raise _refusal(first_line(error)) from error
        snapshot.check_same(outputs, "as plain Python the network")
    write_atomically(path, lambda stream: stream.write(weights))
    write_text(code, source)
    return path, code


def is_ours(code: Path) -> bool:
    """Whether a file was written by an export."""
    return code.is_file() and code.read_bytes().startswith(f'"""{TITLE}'.encode())


def _source(snapshot: Snapshot, stem: str) -> str:
    outline = Outline()
    try:
        outline.follow(snapshot.network)
        return Source(outline).text(
            snapshot.network,
            title=f"{TITLE} {__version__} has written for inference; it needs torch alone.",
            stem=stem,
            shape="({})".format(", ".join(["N", *map(str, snapshot.images.shape[1:])])),
        )
    except Exception as error:
        where = f" (in the forward pass of a {outline.stuck_in})" if outline.stuck_in else ""
        raise _refusal(first_line(error) + where) from error


def _refusal(reason: str) -> ExportError:
    return ExportError(
        f"the network cannot be written as plain Python: {reason}; export it to .pt2, which follows more."
    )


def _imported(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None  # it is for a .py
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _weights(network: nn.Module, build: Any) -> bytes:
    """The tensors that the built network asks for, in the format of safetensors."""
    with torch.device("meta"):
        names = list(build().state_dict())
    found: dict[str, Tensor] = {name: attrgetter(name)(network) for name in names}
    return save({name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in found.items()})
