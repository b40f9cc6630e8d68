"""``.pt2``: a program of ``torch.export``, which torch alone loads and runs."""

import io
import zipfile
from pathlib import Path
from typing import IO

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from nni_blockswap.errors import ExportError, first_line
from nni_blockswap.exporting.snapshot import Snapshot
from nni_blockswap.files import write_atomically


def write(snapshot: Snapshot, path: Path) -> tuple[Path, ...]:
    """Write the program to ``path``.

    Without what only its author could use: the example batch, and the lines and paths of the source at every node.

    Raises:
        ExportError: torch.export cannot follow the network, or made a program of it that gives other outputs, or none.
    """
    program = traced(snapshot)
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)  # before it runs, which may change its buffers
    try:
        with torch.no_grad():
            outputs = program.module()(snapshot.images.clone())
    except Exception as error:  # a module may be called by a word of Python's, which the program's code then has
        raise ExportError(f"torch cannot run what torch.export made of the network: {first_line(error)}.") from error
    if not snapshot.draws:
        snapshot.check_same(outputs, "as a program the network")
    write_atomically(path, lambda stream: _deflate(buffer, stream))
    return (path,)


def traced(snapshot: Snapshot) -> ExportedProgram:
    """The network as a graph of torch's own operations.

    Raises:
        ExportError: torch.export cannot follow it.
    """
    for module in snapshot.network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None  # a counter that only training reads
    shapes = ({0: Dim("batch")},) if snapshot.dynamic_batch else None
    try:
        return torch.export.export(snapshot.network, (snapshot.images,), dynamic_shapes=shapes)
    except Exception as error:
        hint = "; with dynamic_batch=False it may" if snapshot.dynamic_batch else ""
        raise ExportError(f"torch.export cannot follow the network{hint}: {first_line(error)}.") from error


def _deflate(archive: IO[bytes], stream: IO[bytes]) -> None:
    """Copy torch's zip archive with its JSON compressed, which torch leaves at 2 KB an operation and 1 KB a tensor."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            kind = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
            target.writestr(name, source.read(name), kind)
