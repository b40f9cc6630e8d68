"""Networks for people who do not have this package: one file a format. One row of the table a format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from nni_blockswap.errors import ConfigError
from nni_blockswap.exporting.folding import fold_batch_norms
from nni_blockswap.exporting.snapshot import Snapshot
from nni_blockswap.registry import Registry

__all__ = ["FORMATS", "export"]

FORMATS = Registry[Callable[[Snapshot, Path], tuple[Path, ...]]](
    "format",
    {
        ".pt2": f"{__name__}.program:write",
        ".onnx": f"{__name__}.onnx_graph:write",
        ".safetensors": f"{__name__}.plain_python:write",
    },
)
"""Functions by a path's ending that write a snapshot there; each returns the files that it wrote."""


def export(
    network: nn.Module,
    path: str | Path,
    example_input: Any,
    *,
    fold_bn: bool = False,
    dynamic_batch: bool = True,
) -> tuple[Path, ...]:
    """Write ``network`` for inference, in the format that the ending of ``path`` names.

        =============  ==================================================  ===================================
        ending         what is written                                     what runs it
        =============  ==================================================  ===================================
        .pt2           a program of ``torch.export``                       torch
        .onnx          an ONNX graph                                       onnxruntime and others
        .safetensors   the weights, and beside them a Python file of the   torch; its ``load()`` reads the
                       same name that builds the network                   weights with safetensors
        =============  ==================================================  ===================================

    ``network`` itself stays as it is: a copy is written, in eval mode and on the CPU.

    Args:
        network: gives a tensor, or a tuple or mapping of tensors, for a batch.
        path: where to write; what stands there is replaced once the new file is whole.
        example_input: one batch as the network takes it. Its values do not matter; its shape does, batch size apart.
        fold_bn: fold each BN that follows a convolution into it; outputs stay equal to rounding.
        dynamic_batch: take batches of any size, else of the example's alone (what Python builds takes any).

    Returns:
        The files written.

    Raises:
        ConfigError: no such ending, an example that the network cannot take, or packages that are not installed.
        ExportError: the network cannot be written like this: weights that are not finite, a detector, a forward pass
            that cannot be traced.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export(nn.Conv2d(3, 8, 3), f"{folder}/net.safetensors", torch.zeros(1, 3, 8, 8))
        ...     print([path.name for path in written])
        ['net.safetensors', 'net.py']
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ConfigError(f"a network is exported to a file that ends in {', '.join(FORMATS)}, not to '{path}'.")
    snapshot = Snapshot.of(network, example_input, dynamic_batch)
    if fold_bn:
        fold_batch_norms(snapshot)
    return FORMATS[target.suffix](snapshot, target)
