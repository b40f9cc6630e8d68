"""What is left of a training: its weights, its figures, a report to NNI."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import nn

from nni_blockswap import __version__
from nni_blockswap.architecture import Architecture
from nni_blockswap.files import write_json
from nni_blockswap.metric import Metric
from nni_blockswap.training import checkpoints
from nni_blockswap.training.nni_link import NNILink
from nni_blockswap.training.running import Run

RESULT = "result.json"


def publish(
    architecture: Architecture,
    network: nn.Module,
    finished: Run,
    out: Path,
    link: NNILink | None,
    *,
    metric: Metric,
    figures: Mapping[str, float | int | str],
) -> None:
    """Write weights and results to ``out`` and report them to NNI, which optimises the value of ``metric``.

    Args:
        figures: results, the metric's value among them, which come first; what they say of parameters outweighs the
            architecture.
    """
    checkpoints.save(checkpoints.plain_state(network), out / checkpoints.WEIGHTS)
    result: dict[str, float | int | str] = {
        **figures,
        "architecture_id": architecture.id,
        "params": figures.get("params", architecture.params),
        "macs": figures.get("macs", architecture.macs),
        "epochs": finished.trainer.current_epoch,
        "seconds": round(finished.seconds, 1),
    }
    if architecture.score is not None:
        result["score"] = architecture.score
    versions = {package: version(package) for package in ("torch", "pytorch-lightning", "nni")}
    about = {"metric": metric.recorded(), "versions": {"nni-blockswap": __version__, **versions}}
    write_json(out / RESULT, {**result, **about})
    if link is not None:
        link.report_final({"default": figures[metric.key], **result})
