"""What a trial left of itself: its result.json, looked at before anybody relies on it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nni_blockswap.errors import StateError
from nni_blockswap.files import read_json
from nni_blockswap.metric import ACCURACY, Metric, judged

ARCHITECTURE, SETTINGS, RESULT, WEIGHTS = "architecture.json", "settings.json", "result.json", "weights.pt"
"""What a trial's folder holds: the network, what it was started with, how good it became, and its weights."""

RUN, EPOCHS, EXTENDED = "run", "epochs", "extended_from"
"""In those settings: a name for the run, how many epochs it has now, and how many it had each time before."""

GIVEN, WORD = "parameters.json", "failure.json"
"""Under NNI: what the trial was given; and why it failed, which tells it from a trial that was killed."""

KINDS: Mapping[str, type] = {
    **dict.fromkeys(("params", "macs", "epochs", "seed", "nonzero"), int),
    **dict.fromkeys(("architecture_id", "method", "variant"), str),
}
"""Of what a result may say."""


def link_curves(output: Path) -> None:
    """Make the web page's TensorBoard button find the curves of the trial that writes to ``output``.

    The button looks in <experiment>/trials/<trial>/output/tensorboard; trials write below
    <experiment>/environments/<environment>/trials/<trial> (microsoft/nni issue 5609).
    """
    trial, folders = output.name, output.parents
    if len(folders) < 4 or folders[0].name != "trials" or folders[2].name != "environments":
        return
    looked_at = folders[3] / "trials" / trial / "output" / "tensorboard"
    looked_at.parent.mkdir(parents=True, exist_ok=True)
    if not looked_at.is_symlink():
        looked_at.symlink_to(output / "tensorboard")


def results_below(folders: Iterable[str | Path]) -> list[Path]:
    """The results of all trials at or below ``folders``, the last one last."""
    paths = [path for folder in folders for path in Path(folder).rglob(RESULT)]
    return sorted(paths, key=lambda path: (path.stat().st_mtime, path))


def read_result(path: str | Path) -> dict[str, Any]:
    """A trial's result: at least a value of its metric, ``params``, and all of the kind that it should be.

    Raises:
        StateError: it is damaged, or no result.
    """
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
        wrong = [
            name
            for name, kind in KINDS.items()
            if name in found and (type(found[name]) is not kind or (kind is int and found[name] < 0))
        ]
        wrong += [name for name in ("params",) if name not in found]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be")
        metric, value = judged(found)
        taught = found.get(f"teacher_{metric.key}", 0.0)
        if isinstance(taught, bool) or not isinstance(taught, int | float):
            raise ValueError("its teacher's value is no number")
        if metric == ACCURACY and not (0 <= value <= 1 and 0 <= taught <= 1):
            raise ValueError("an accuracy lies between 0 and 1")
    except (ValueError, RecursionError, StateError) as error:
        raise StateError(f"'{path}' is damaged ({str(error).rstrip('.')}); run the trial again.") from error
    return found


def metric_in(folder: Path, otherwise: Metric) -> Metric:
    """What the trial in ``folder`` was judged by; ``otherwise`` where it has left no result there."""
    try:
        return judged(read_result(folder / RESULT))[0]
    except (OSError, StateError):
        return otherwise
