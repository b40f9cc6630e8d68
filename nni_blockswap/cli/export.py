"""Take the best trial out of an experiment: its architecture.json and weights, as ONNX too on request."""

import argparse
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from nni_blockswap.errors import CheckpointError, ConfigError, StateError
from nni_blockswap.experiment.service import folder_of, results
from nni_blockswap.files import write_atomically
from nni_blockswap.metric import judged

ARCHITECTURE, WEIGHTS, RESULT, ONNX = "architecture.json", "weights.pt", "result.json", "model.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("experiment", metavar="EXPERIMENT_ID", help="as nnictl shows it, or the experiment's folder")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help=f"folder for {ARCHITECTURE}, {WEIGHTS} and {RESULT}"
    )
    parser.add_argument("--onnx", action="store_true", help=f"write {ONNX} too")


def run(options: argparse.Namespace) -> int:
    """Copy the best trial's files."""
    folder = Path(options.experiment)
    ended = results(folder if folder.is_dir() else folder_of(options.experiment))
    if not ended:
        raise StateError(f"no trial of experiment '{options.experiment}' has come to an end; train one first.")
    best, result = max(ended.values(), key=lambda trial: _merit(trial[1]))
    out = Path(options.out)
    for name in (ARCHITECTURE, WEIGHTS, RESULT):
        if not (best / name).is_file():
            raise StateError(f"the best trial's '{best / name}' is missing; run the trial again.")
        content = (best / name).read_bytes()
        write_atomically(out / name, partial(_write, content))
    metric, value = judged(result)
    print(f"{result['architecture_id']}: {metric} {metric.show(value)}, {result['params']:,} parameters; in {out}")
    if options.onnx:
        write_onnx(out)
        print(f"{out / ONNX}")
    return 0


def _merit(result: dict[str, Any]) -> float:
    metric, value = judged(result)
    return metric.merit(value)


def _write(content: bytes, stream: IO[bytes]) -> None:
    stream.write(content)


def write_onnx(folder: Path) -> None:
    """Write the network in ``folder`` as ONNX, for batches of any size.

    Raises:
        ConfigError: the packages that torch.onnx needs are not installed, or it is a detector.
        CheckpointError: the weights do not fit the architecture.
    """
    import torch

    from nni_blockswap.architecture import Architecture

    try:
        for package in ("onnx", "onnxscript"):
            import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"torch.onnx needs the packages onnx and onnxscript ({error}): pip install onnx onnxscript."
        ) from error
    network: Any = Architecture.load(folder / ARCHITECTURE).build()
    if network.detects:
        raise ConfigError("ONNX is written of classifiers; of a detector take the weights.")
    try:
        network.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    except Exception as error:
        raise CheckpointError(
            f"'{folder / WEIGHTS}' does not fit its architecture: {str(error).splitlines()[0]}"
        ) from error
    images = torch.zeros(2, *network.input_size)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(network.eval(), (images,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    assert program is not None
    program.save(folder / ONNX)
