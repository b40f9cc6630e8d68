"""Take the best trial out of an experiment: architecture.json and weights, and files that run without this package."""

import argparse
from functools import partial
from pathlib import Path
from typing import IO, Any

from nni_blockswap.errors import CheckpointError, ConfigError, StateError, first_line
from nni_blockswap.experiment.service import ended, folder_of
from nni_blockswap.files import check_archive, write_atomically
from nni_blockswap.metric import judged
from nni_blockswap.results.trial import ARCHITECTURE, RESULT, WEIGHTS
from nni_blockswap.trust import add_allow

FORMATS = ("pt2", "onnx", "safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="an id as nnictl shows it, or a folder with results in it"
    )
    add_allow(parser)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help=f"folder for {ARCHITECTURE}, {WEIGHTS} and {RESULT}"
    )
    parser.add_argument(
        "--format",
        nargs="+",
        action="extend",
        choices=FORMATS,
        default=[],
        help="write the network as model.FORMAT, too: a torch.export program, ONNX, or safetensors with model.py",
    )
    parser.add_argument("--onnx", dest="format", action="append_const", const="onnx", help="the same as --format onnx")
    parser.add_argument("--fold-bn", action="store_true", help="fold BN into the convolutions of those")


def run(options: argparse.Namespace) -> int:
    """Copy the best trial's files and export its network."""
    if options.fold_bn and not options.format:
        raise ConfigError("--fold-bn is of the files that --format names; name a format, as in --format onnx.")
    best, result = _best(options.experiment)
    out = Path(options.out)
    missing = [best / name for name in (ARCHITECTURE, WEIGHTS, RESULT) if not (best / name).is_file()]
    if missing:
        in_python = "; or, where distill wrote the folder, export its student in Python: nni_blockswap.export(...)"
        remedy = f"run the trial again{in_python if missing[0].name == ARCHITECTURE else ''}."
        raise StateError(f"the best trial's '{missing[0]}' is missing; {remedy}")
    try:
        check_archive(best / WEIGHTS)
    except ValueError as error:
        raise CheckpointError(
            f"'{best / WEIGHTS}' cannot be read, it may be damaged: {error}; run the trial again."
        ) from error
    contents = {name: (best / name).read_bytes() for name in (ARCHITECTURE, WEIGHTS, RESULT)}
    others = _of_other_weights(out, contents[WEIGHTS])
    for name, content in contents.items():
        write_atomically(out / name, partial(_write, content))
    metric, value = judged(result)
    name = result.get("architecture_id", best.name)
    print(f"{name}: {metric} {metric.show(value)}, {result['params']:,} parameters; from '{best}'")
    written = _export(out, list(dict.fromkeys(options.format)), options.fold_bn) if options.format else []
    for path in others:
        if path not in written:
            path.unlink()
            print(f"{path}: removed, as it was of other weights")
    return 0


def _best(experiment: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the result of the trial with the best figure.

    Raises:
        StateError: none has come to an end, or they are judged by different things.
    """
    trials = ended(folder_of(experiment))
    if not trials:
        raise StateError(f"no trial of experiment '{experiment}' has come to an end; train one first.")
    metrics = sorted({str(judged(result)[0]) for _, result in trials})
    if len(metrics) > 1:
        raise StateError(f"trials in '{experiment}' are judged by {' and by '.join(metrics)}; name the folder of one.")
    return max(trials, key=lambda trial: _merit(trial[1]))


def _merit(result: dict[str, Any]) -> float:
    metric, value = judged(result)
    return metric.merit(value)


def _of_other_weights(out: Path, weights: bytes) -> list[Path]:
    """What an earlier export to ``out`` made of other weights: it would look as if it were of these."""
    from nni_blockswap.exporting.plain_python import is_ours

    kept = [out / name for name in (ARCHITECTURE, WEIGHTS, RESULT)]  # beside which an export stands
    if not all(path.is_file() for path in kept) or (out / WEIGHTS).read_bytes() == weights:
        return []
    found = [path for one in FORMATS if (path := out / f"model.{one}").is_file()]
    found += [code for path in found if path.suffix == ".safetensors" and is_ours(code := path.with_suffix(".py"))]
    return found


def _write(content: bytes, stream: IO[bytes]) -> None:
    stream.write(content)


def _export(folder: Path, formats: list[str], fold_bn: bool) -> list[Path]:
    """Write the network whose architecture and weights are in ``folder`` beside them; what was written."""
    import torch

    from nni_blockswap.blocks.space import input_size_of
    from nni_blockswap.exporting import export

    network = _trained(folder)
    images = torch.zeros(1, *input_size_of(network))
    written = []
    for one in formats:
        for path in export(network, folder / f"model.{one}", images, fold_bn=fold_bn):
            written.append(path)
            print(f"{path}: {path.stat().st_size:,} bytes")
    return written


def _trained(folder: Path) -> Any:
    """The network. Raises CheckpointError where the weights cannot be read, or do not fit the architecture."""
    from nni_blockswap.architecture import Architecture
    from nni_blockswap.training import checkpoints

    network = Architecture.load(folder / ARCHITECTURE).build()
    state = checkpoints.read(folder / WEIGHTS)
    try:
        network.load_state_dict(state)
    except Exception as error:  # it need not be a mapping
        raise CheckpointError(
            f"'{folder / WEIGHTS}' does not fit its architecture: {first_line(error)}; run the trial again."
        ) from error
    return network
