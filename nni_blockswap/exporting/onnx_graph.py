"""``.onnx``: a graph for onnxruntime and others that read ONNX."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nni_blockswap.errors import ConfigError, ExportError, first_line
from nni_blockswap.exporting.program import traced
from nni_blockswap.exporting.snapshot import Snapshot, parts_of
from nni_blockswap.files import write_atomically


def write(snapshot: Snapshot, path: Path) -> tuple[Path, ...]:
    """Write the graph to ``path``. The exporter folds BN into convolutions in any case.

    Raises:
        ConfigError, ExportError: see ``graph``.
        ExportError: in ONNX Runtime, where it is installed, the graph gives other outputs.
    """
    content = graph(snapshot)
    if not snapshot.draws:
        _check(content, snapshot)
    write_atomically(path, lambda stream: stream.write(content))
    return (path,)


def graph(snapshot: Snapshot) -> bytes:
    """The graph, as a file of it holds it.

    Raises:
        ConfigError: the packages that torch.onnx needs are not installed.
        ExportError: the network has an operation that cannot be exported.
    """
    passes = _passes()
    program = traced(snapshot)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # torch's exporter about torch's own trees
            made = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # which operation it is stands at the bottom
            cause = cause.__cause__
        raise ExportError(f"torch.onnx cannot write the network: {first_line(cause)}; .pt2 may do.") from error
    assert made is not None  # it is where no file name is given
    # The exporter notes at every node the stack trace and the modules that it came from: in a network of 165,722
    # parameters 1.6 of its 5.7 bytes a parameter, and the paths of the machine that wrote it.
    passes.ClearMetadataAndDocStringPass()(made.model)
    content: bytes = made.model_proto.SerializeToString()
    return content


def _check(content: bytes, snapshot: Snapshot) -> None:
    """Compare what is no whole number with the network's own: where two values round alike, indices may differ.

    Raises:
        ExportError: torch.onnx has written something that does not do what the network does.
    """
    try:
        import onnxruntime

        runtime = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found = runtime.run(None, {runtime.get_inputs()[0].name: snapshot.images.numpy()})
        outputs = [
            torch.from_numpy(theirs) if ours.is_floating_point() else ours
            for ours, theirs in zip(parts_of(snapshot.outputs, Tensor), found, strict=True)
        ]
    except Exception:  # it is not installed, or does not know an operation or bfloat16: others may
        return
    reason = "torch.onnx writes one of its operations otherwise than torch runs it; export to .pt2"
    snapshot.check_same(outputs, "in ONNX Runtime the network", reason)


def _passes() -> Any:
    """The passes over a graph of the package that torch.onnx makes it with, once all that it needs can be imported."""
    try:
        for package in ("onnx", "onnxscript"):
            import_module(package)
        return import_module("onnx_ir.passes.common")
    except ImportError as error:
        raise ConfigError(
            f"torch.onnx needs the packages onnx and onnxscript ({error}): pip install onnx onnxscript."
        ) from error
