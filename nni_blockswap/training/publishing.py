"""What is left of a training: its weights, its figures, a report to NNI."""

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from nni_blockswap import __version__
from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import TrainingError
from nni_blockswap.files import write_json
from nni_blockswap.metric import Metric
from nni_blockswap.networks import not_finite
from nni_blockswap.results.trial import RESULT, WEIGHTS
from nni_blockswap.training import checkpoints
from nni_blockswap.training.nni_link import NNILink
from nni_blockswap.training.running import Finished


def publish(
    out: Path,
    network: nn.Module,
    finished: Finished,
    *,
    metric: Metric,
    figures: Mapping[str, float | int | str],
    about: Mapping[str, Any],
    link: NNILink | None = None,
) -> None:
    """Write weights and results to ``out`` and report them to NNI, which optimises the value of ``metric``.

    Args:
        figures: results, the metric's value among them; they come first and outweigh the rest.
        about: what was trained.

    Raises:
        TrainingError: a weight or a figure is no finite number; nothing is written then.
    """
    value = float(figures[metric.key])
    if not math.isfinite(value):
        raise TrainingError(
            f"the {metric} on the validation set is {value} after the last epoch, and nothing can be judged by that; "
            "mend what computes it, and go on with more epochs."
        )
    numbers = [value for value in figures.values() if isinstance(value, float)]
    if not all(map(math.isfinite, numbers)) or not_finite(network) is not None:
        raise TrainingError(
            f"what was trained in '{out}' is not finite, and is not published; train it anew elsewhere."
        )
    checkpoints.save(checkpoints.plain_state(network), out / WEIGHTS)
    run = {"epochs": finished.trainer.current_epoch, "seconds": round(finished.seconds, 1)}
    result = {**figures, **about, **run, **figures}  # in this order, and figures outweigh the rest
    versions = {package: version(package) for package in ("torch", "pytorch-lightning", "nni")}
    named = {"metric": metric.recorded(), "versions": {"nni-blockswap": __version__, **versions}}
    write_json(out / RESULT, {**result, **named})
    if link is not None:
        link.report_final({"default": figures[metric.key], **result})


def described(architecture: Architecture) -> dict[str, Any]:
    """What a result says of an architecture."""
    found = {"architecture_id": architecture.id, "params": architecture.params, "macs": architecture.macs}
    return found if architecture.score is None else {**found, "score": architecture.score}
