"""How every trial of an architecture begins and ends: its architecture, its folder, its results."""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from nni_blockswap import __version__
from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.training import checkpoints, options
from nni_blockswap.training.nni_link import NNILink, is_first_process, under_nni
from nni_blockswap.training.running import Run

COMPARISON = ("method", "variant", "seed", "nonzero")
"""What a comparison's parameters say of how a network came about and is trained; see ``studies.comparison``."""

SETTINGS = "settings.json"

_claimed: set[Path] = set()
"""Folders whose settings this process has written."""

NOT_A_BLOCK = ("space", "space_args", "params", "macs", "score", "rank", "architecture_id", *COMPARISON)
"""What a tuner's parameters hold beside one substitute for each block label."""


def add_student(command: argparse.ArgumentParser) -> None:
    """Options for what is trained, and where its results go."""
    command.add_argument("--architecture", metavar="FILE", help="a saved Architecture; not needed under NNI")
    command.add_argument("--out", metavar="DIR", help="where results go; under NNI the trial's output folder")


def begin(given: argparse.Namespace) -> tuple[Architecture, Path, NNILink | None]:
    """The architecture to train, the folder for its results and, in NNI's first process, the tie to NNI.

    Raises:
        ConfigError: there is no architecture or no folder.
    """
    link = NNILink() if under_nni() and is_first_process() else None
    where = given.out or os.environ.get("NNI_OUTPUT_DIR")
    if not where:
        raise ConfigError("--out DIR says where results go.")
    out = Path(where)
    if link is not None:
        link.link_tensorboard()
    if link is not None and given.architecture is None:
        _take(given, link.parameters)
        return architecture_from(link.parameters, given), out, link
    if not is_first_process():
        _take(given, _settings_in(out))
        return Architecture.load(out / "architecture.json"), out, link
    if given.architecture is None:
        raise ConfigError("--architecture FILE says what to train; 'blockswap search' writes one.")
    return Architecture.load(given.architecture), out, link


def _take(given: argparse.Namespace, parameters: Mapping[str, Any]) -> None:
    """Let a comparison's parameters outweigh the command line."""
    for name in COMPARISON:
        if name in parameters:
            setattr(given, name, parameters[name])


def architecture_from(parameters: Mapping[str, Any], given: argparse.Namespace) -> Architecture:
    """The architecture in a tuner's parameters; the space is theirs, or for NNI's own tuners the command line's."""
    space = parameters.get("space", given.space)
    if space is None:
        raise ConfigError("the tuner names no space; add --space (and --space-args) to the trial's command.")
    arguments = parameters.get("space_args", options.pairs(given.space_args, "--space-args"))
    choices = {label: name for label, name in parameters.items() if label not in NOT_A_BLOCK}
    found = Architecture.from_choices(space, choices, arguments)
    score = parameters.get("score")
    return found if score is None else found.scored(score, {"rank": parameters.get("rank")})


def claim(out: Path, architecture: Architecture, settings: dict[str, Any]) -> None:
    """Write down whose folder ``out`` is.

    Raises:
        StateError: another run's, with which this one would be mixed, or that cannot be told.
    """
    settings = {"architecture_id": architecture.id, **settings}
    if (out / SETTINGS).exists():
        kept = _settings_in(out)
        other = [name for name in {**kept, **settings} if kept.get(name) != settings.get(name)]
        if other:
            raise StateError(f"'{out}' holds a run with another {', '.join(other)}; give this one a folder of its own.")
    write_json(out / SETTINGS, settings)
    _claimed.add(out)
    architecture.save(out / "architecture.json")


@contextmanager
def released_on_failure(out: Path) -> Iterator[None]:
    """Give ``out`` up again where a run ends in an error before there is anything of it."""
    try:
        yield
    except BaseException:
        if out in _claimed and not any((out / name).exists() for name in (checkpoints.LAST, checkpoints.WEIGHTS)):
            (out / SETTINGS).unlink(missing_ok=True)
        raise


def _settings_in(out: Path) -> dict[str, Any]:
    try:
        return dict(read_json(out / SETTINGS))
    except (ValueError, TypeError) as error:
        raise StateError(
            f"'{out / SETTINGS}' is damaged ({error}), so that nobody can tell whose run '{out}' holds; "
            "give this one a folder of its own."
        ) from error


def publish(
    architecture: Architecture,
    network: nn.Module,
    finished: Run,
    out: Path,
    link: NNILink | None,
    *,
    default: float,
    figures: Mapping[str, float | int | str],
) -> None:
    """Write weights and results to ``out`` and report them to NNI, which optimises ``default``.

    Args:
        figures: results, which come first; what they say of parameters outweighs the architecture.
    """
    checkpoints.save(checkpoints.plain_state(network), out / checkpoints.WEIGHTS)
    result: dict[str, float | int | str] = {
        **figures,
        "architecture_id": architecture.id,
        "params": figures.get("params", architecture.params),
        "macs": architecture.macs,
        "epochs": finished.trainer.current_epoch,
        "seconds": round(finished.seconds, 1),
    }
    if architecture.score is not None:
        result["score"] = architecture.score
    versions = {package: version(package) for package in ("torch", "pytorch-lightning", "nni")}
    write_json(out / "result.json", {**result, "versions": {"nni-blockswap": __version__, **versions}})
    if link is not None:
        link.report_final({"default": default, **result})
